// SPDX-License-Identifier: GPL-2.0

//! Builds records as the kernel does, from `ima_alloc_init_template()` to
//! `ima_measurements_show()`. It shares no code with what it tests.
#![allow(dead_code, unreachable_pub, missing_docs)]

use sha1::Digest;
use sha1::Sha1;

/// A record to be built. `fields` are contents as the kernel's `template_data[]` has them, with
/// the NUL of strings.
#[derive(Clone, Debug)]
pub struct Build {
    pub pcr: i32,
    pub template: Vec<u8>,
    pub fields: Vec<Vec<u8>>,
    pub violation: bool,
}

/// A record in PCR 10.
pub fn build(template: &str, fields: &[&[u8]]) -> Build {
    Build {
        pcr: 10,
        template: template.as_bytes().to_vec(),
        fields: fields.iter().map(|field| field.to_vec()).collect(),
        violation: false,
    }
}

impl Build {
    pub fn pcr(mut self, pcr: i32) -> Self {
        self.pcr = pcr;
        self
    }

    pub fn violation(mut self) -> Self {
        self.violation = true;
        self
    }

    /// What `ima_calc_field_array_hash_tfm()` hashes.
    pub fn hashed(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for (index, field) in self.fields.iter().enumerate() {
            if self.template != b"ima" {
                all.extend((field.len() as u32).to_ne_bytes());
                all.extend(field);
            } else if index == 1 {
                let mut buffer = [0; 256];
                buffer[..field.len()].copy_from_slice(field);
                all.extend(buffer);
            } else {
                all.extend(field);
            }
        }
        all
    }

    /// What `ima_show_template_data_binary()` writes for all fields.
    pub fn data(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for (index, field) in self.fields.iter().enumerate() {
            match (self.template == b"ima", index) {
                (true, 0) => all.extend(field),
                (true, _) => {
                    let length = field.iter().position(|&byte| byte == 0).unwrap();
                    all.extend((length as u32).to_ne_bytes());
                    all.extend(&field[..length]);
                }
                (false, _) => {
                    all.extend((field.len() as u32).to_ne_bytes());
                    all.extend(field);
                }
            }
        }
        all
    }

    /// The record with any digest, as in the file of another bank.
    pub fn with_digest(&self, digest: &[u8]) -> Vec<u8> {
        let data = self.data();
        let mut all = Vec::new();
        all.extend(self.pcr.to_ne_bytes());
        all.extend(digest);
        all.extend((self.template.len() as u32).to_ne_bytes());
        all.extend(&self.template);
        if self.template != b"ima" {
            all.extend((data.len() as u32).to_ne_bytes());
        }
        all.extend(data);
        all
    }

    /// The digest in the list, by SHA-1.
    pub fn sha1(&self) -> Vec<u8> {
        if self.violation {
            vec![0; 20]
        } else {
            Sha1::digest(self.hashed()).to_vec()
        }
    }

    /// The record in `binary_runtime_measurements_sha1`.
    pub fn bytes(&self) -> Vec<u8> {
        self.with_digest(&self.sha1())
    }
}

/// The field `d-ng` of this algorithm and digest.
pub fn d_ng(algorithm: &str, digest: &[u8]) -> Vec<u8> {
    [algorithm.as_bytes(), b":\0", digest].concat()
}

/// A string field, with its NUL.
pub fn string(text: &[u8]) -> Vec<u8> {
    [text, b"\0"].concat()
}

/// A record of ima-ng, as most lists have them.
pub fn ima_ng(name: &[u8]) -> Build {
    build(
        "ima-ng",
        &[
            &d_ng("sha256", &Sha1::digest(name).repeat(2)[..32]),
            &string(name),
        ],
    )
}
