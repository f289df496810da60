// SPDX-License-Identifier: GPL-2.0

//! A machine in a test: IMA, the module and the TPM, as far as a verifier can see them.
//!
//! It shares no code with the verifier: extends are computed here, texts are written here, and
//! quotes are put together byte by byte. Keys are of the tests alone, and secret to nobody.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;

use rsa::pkcs8::EncodePublicKey;
use rsa::signature::hazmat::PrehashSigner;
use sha1::Sha1;
use sha2::Digest;
use sha2::Sha256;
use sha2::Sha384;
use sha2::Sha512;

use crate::common::build;
use crate::common::d_ng;
use crate::common::string;
use crate::common::Build;

/// The TPM's banks.
pub const BANKS: [&str; 3] = ["sha1", "sha256", "sha384"];

/// The policy of the machine, as IMA prints it.
pub const POLICY: &str = "dont_measure fsmagic=0x9fa0 \nmeasure func=CRITICAL_DATA                           label=ima_policy \nmeasure func=CRITICAL_DATA label=ima_trim \nmeasure                           func=FILE_CHECK mask=^MAY_READ uid=0 \n";

/// The primes of an RSA key of 2048 bits.
const P: &str = "f6ed13f42fd8510137dd08ff4516851fd9c68725b52b54864cb18612b87749966e758587bc7a89777b5f8cc19ca8ac47f65ade3550e35a8aecf5ee18b5d04282e832a7402b86ec915d09703810fa03a416fa8ae1a74637cbe6495a9bedc64c0d5ba06b03199261f7c1c1f1df75fb243660e6e5d1db5d4da691b4ec2c3578bea9";
const Q: &str = "c26a79f0a025cd0d9fa66032395c159698fd0de9ae43281d2024b80671034332dac30b2c1595bdbf21df1498d477b7b3a9c412cd78af1a00731c6c4123c08a1aaf48580eb8f2d2cd3384e75ffdf729a385f8cca41a5a377a29fdfbf52ee181d119e8bcbdae3b9839cbd2d5e96625a9eaba9e08c7d2e089b5ac86458a03593a8d";

pub type Values = BTreeMap<(&'static str, u32), Vec<u8>>;

pub fn hash(bank: &str, parts: &[&[u8]]) -> Vec<u8> {
    let all = parts.concat();
    match bank {
        "sha1" => Sha1::digest(all).to_vec(),
        "sha256" => Sha256::digest(all).to_vec(),
        "sha384" => Sha384::digest(all).to_vec(),
        _ => Sha512::digest(all).to_vec(),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A record of a file.
pub fn file(name: &str, content: &str) -> Build {
    build(
        "ima-sig",
        &[
            &d_ng("sha256", &Sha256::digest(content)),
            &string(name.as_bytes()),
            b"",
        ],
    )
}

/// A record of a buffer.
pub fn buffer(name: &str, data: &[u8]) -> Build {
    build(
        "ima-buf",
        &[
            &d_ng("sha256", &Sha256::digest(data)),
            &string(name.as_bytes()),
            data,
        ],
    )
}

/// The same record of a buffer, with other data and its right digest.
pub fn change_text(record: &mut Build, change: impl Fn(&str) -> String) {
    let text = String::from_utf8(record.fields[2].clone()).unwrap();
    let changed = change(&text);
    assert_ne!(changed, text, "the change changes nothing");
    record.fields[0] = d_ng("sha256", &Sha256::digest(&changed));
    record.fields[2] = changed.into_bytes();
}

/// What changes a record before it is measured. The first argument is its name in the history.
pub type Edit<'a> = Box<dyn FnMut(&str, &mut Build) + 'a>;

pub struct Machine<'a> {
    pub edit: Edit<'a>,
    pub records: Vec<Build>,
    /// What the PCRs had after so many records.
    pub values: Vec<Values>,
    /// PCRs 0 to 9.
    pub boot: Values,
    /// Records that are not in the list any more.
    pub start: usize,
    pub starting: String,
    pub trims: u64,
    pub excess: u64,
    pub instance: String,
    pub kernel_deleted: u64,
    pub kernel_violations: u64,
    pub reset_count: u32,
    pub restart_count: u32,
}

impl<'a> Machine<'a> {
    /// A machine that has just booted, with the record of that.
    pub fn new(edit: Edit<'a>) -> Self {
        let mut boot = Values::new();
        let mut values = Values::new();
        for bank in BANKS {
            for pcr in 0..10 {
                let value = hash(bank, &[b"boot", &[pcr as u8]]);
                boot.insert((bank, pcr), value);
            }
            for pcr in 10..24 {
                let byte = if (17..23).contains(&pcr) { 0xff } else { 0 };
                values.insert((bank, pcr), vec![byte; hash(bank, &[]).len()]);
            }
        }
        let mut machine = Self {
            edit,
            records: Vec::new(),
            values: vec![values],
            boot,
            start: 0,
            starting: String::new(),
            trims: 0,
            excess: 0,
            instance: String::new(),
            kernel_deleted: 0,
            kernel_violations: 0,
            reset_count: 41,
            restart_count: 0,
        };
        machine.starting = machine.stated(0);
        machine.boot_aggregate("boot");
        machine
    }

    pub fn boot_aggregate(&mut self, label: &str) {
        let parts: Vec<u8> = (0..10)
            .flat_map(|pcr| self.boot[&("sha256", pcr)].clone())
            .collect();
        let record = build(
            "ima-sig",
            &[
                &d_ng("sha256", &Sha256::digest(parts)),
                &string(b"boot_aggregate"),
                b"",
            ],
        );
        self.measure(label, record);
    }

    /// IMA measures something.
    pub fn measure(&mut self, label: &str, mut record: Build) {
        (self.edit)(label, &mut record);
        let mut values = self.values.last().unwrap().clone();
        let pcr = record.pcr as u32;
        for bank in BANKS {
            if let Some(value) = values.get_mut(&(bank, pcr)) {
                let digest = if record.violation {
                    vec![0xff; value.len()]
                } else {
                    hash(bank, &[&record.hashed()])
                };
                *value = hash(bank, &[value, &digest]);
            }
        }
        self.kernel_violations += u64::from(record.violation);
        self.records.push(record);
        self.values.push(values);
    }

    pub fn file(&mut self, name: &str) {
        self.measure(name, file(&format!("/opt/app/{name}"), name));
    }

    pub fn violation(&mut self, name: &str) {
        let record = build(
            "ima-sig",
            &[
                &d_ng("sha256", &[0; 32]),
                &string(format!("/opt/app/{name}").as_bytes()),
                b"",
            ],
        );
        self.measure(&format!("violation of {name}"), record.violation());
    }

    pub fn policy(&mut self, label: &str) {
        self.measure(label, buffer("ima_policy_loaded", POLICY.as_bytes()));
    }

    fn violations(&self, records: usize) -> u64 {
        self.records[..records]
            .iter()
            .filter(|record| record.violation)
            .count() as u64
    }

    /// The text of `starting_pcrs` after so many records.
    pub fn stated(&self, records: usize) -> String {
        let mut pcrs = vec![10];
        for record in &self.records[..records] {
            if (0..24).contains(&record.pcr) && !pcrs.contains(&(record.pcr as u32)) {
                pcrs.push(record.pcr as u32);
            }
        }
        pcrs.sort_unstable();
        let mut text = String::new();
        for bank in BANKS {
            for pcr in &pcrs {
                let value = hex(&self.values[records][&(bank, *pcr)]);
                text += &format!("{bank}:{pcr}={value}\n");
            }
        }
        text + &format!(
            "records={records}\nviolations={}\ntrims={}\n",
            self.violations(records) + self.excess,
            self.trims
        )
    }

    fn event(&mut self, label: &str, name: &str, text: &str) {
        self.measure(label, buffer(name, text.as_bytes()));
    }

    /// The module is loaded.
    pub fn load(&mut self, label: &str, instance: char) {
        self.instance = instance.to_string().repeat(32);
        self.starting = if self.kernel_deleted == 0 {
            let mut text: String = BANKS
                .iter()
                .map(|bank| format!("{bank}:10={}\n", "00".repeat(hash(bank, &[]).len())))
                .collect();
            text += "records=0\nviolations=0\ntrims=0\n";
            text
        } else {
            format!("unknown records={}\n", self.kernel_deleted)
        };
        let text = format!(
            "version=2\ninstance={}\nguard=on\nsignatures=off\nkernel_deleted={}\n\
             kernel_violations={}\n{}",
            self.instance, self.kernel_deleted, self.kernel_violations, self.starting
        );
        self.event(label, "load", &text);
    }

    /// A trim that is announced. `done`: and carried out.
    pub fn trim(&mut self, label: &str, to: usize, done: bool) {
        self.trims += 1;
        let starting = self.stated(to);
        let text = format!("instance={}\n{starting}", self.instance);
        self.event(label, "trim", &text);
        if done {
            self.kernel_deleted += (to - self.start) as u64;
            self.start = to;
            self.starting = starting;
        } else {
            self.trims -= 1;
        }
    }

    /// Starting values are stated that are right.
    pub fn restore(&mut self, label: &str) {
        self.starting = self.stated(self.start);
        let text = format!("instance={}\n{}", self.instance, self.starting);
        self.event(label, "restore", &text);
    }

    /// Somebody else removes records.
    pub fn foreign(&mut self, label: &str, count: usize) {
        self.start += count;
        self.kernel_deleted += count as u64;
        self.starting = format!("unknown records={count}\n");
        let text = format!(
            "instance={}\nkernel_deleted={}\nforeign_records={count}\n",
            self.instance, self.kernel_deleted
        );
        self.event(label, "foreign", &text);
    }

    /// Another kernel is started, which gets the list.
    pub fn kexec(&mut self) {
        self.kernel_deleted = 0;
        self.kernel_violations = 0;
    }

    /// What an agent sends.
    pub fn evidence(&self, whole: bool) -> Evidence {
        let mut pcrs = self.boot.clone();
        pcrs.retain(|cell, _| cell.0 != "sha1");
        for ((bank, pcr), value) in self.values.last().unwrap() {
            if *bank != "sha1" && *pcr == 10 {
                pcrs.insert((bank, *pcr), value.clone());
            }
        }
        Evidence {
            records: self.records[if whole { 0 } else { self.start }..].to_vec(),
            starting: (!whole).then(|| self.starting.clone()),
            pcrs,
            signed: None,
            nonce: b"a nonce".to_vec(),
            reset_count: self.reset_count,
            restart_count: self.restart_count,
            signer: Signer::P256,
            kept: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    P256,
    OtherP256,
    P384,
    Rsassa,
    Rsapss,
}

/// What an agent sends.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub records: Vec<Build>,
    pub starting: Option<String>,
    /// What is sent.
    pub pcrs: Values,
    /// What is signed, if it is something else.
    pub signed: Option<Values>,
    pub nonce: Vec<u8>,
    pub reset_count: u32,
    pub restart_count: u32,
    pub signer: Signer,
    pub kept: Option<Vec<Build>>,
}

impl Evidence {
    pub fn log(&self) -> Vec<u8> {
        self.records.iter().flat_map(Build::bytes).collect()
    }

    /// The values as `tpm2_checkquote` prints them.
    pub fn printed(&self) -> String {
        let mut text = "pcrs:\n".to_owned();
        let mut last = "";
        for ((bank, pcr), value) in &self.pcrs {
            if *bank != last {
                text += &format!("  {bank}:\n");
                last = bank;
            }
            text += &format!("    {pcr:<2}: 0x{}\n", hex(value).to_uppercase());
        }
        text
    }

    /// `TPMS_ATTEST` of a quote, TPM 2.0 Library Part 2, 10.12.12.
    pub fn message(&self) -> Vec<u8> {
        let values = self.signed.as_ref().unwrap_or(&self.pcrs);
        let mut message = vec![0xff, b'T', b'C', b'G', 0x80, 0x18];
        message.extend([0, 0]);
        message.extend((self.nonce.len() as u16).to_be_bytes());
        message.extend(&self.nonce);
        message.extend(123_456_u64.to_be_bytes());
        message.extend(self.reset_count.to_be_bytes());
        message.extend(self.restart_count.to_be_bytes());
        message.push(1);
        message.extend(7_u64.to_be_bytes());
        let mut banks: Vec<&str> = values.keys().map(|cell| cell.0).collect();
        banks.dedup();
        message.extend((banks.len() as u32).to_be_bytes());
        for bank in banks {
            let id = match bank {
                "sha1" => 4_u16,
                "sha256" => 0x0b,
                "sha384" => 0x0c,
                _ => 0x0d,
            };
            let map = values
                .keys()
                .filter(|cell| cell.0 == bank)
                .fold(0_u32, |map, cell| map | (1 << cell.1));
            message.extend(id.to_be_bytes());
            message.push(3);
            message.extend(&map.to_le_bytes()[..3]);
        }
        let all: Vec<u8> = values.values().flatten().copied().collect();
        let digest = hash(self.hash_name(), &[&all]);
        message.extend((digest.len() as u16).to_be_bytes());
        message.extend(digest);
        message
    }

    fn hash_name(&self) -> &'static str {
        if self.signer == Signer::P384 {
            "sha384"
        } else {
            "sha256"
        }
    }

    /// `TPMT_SIGNATURE`, TPM 2.0 Library Part 2, 11.3.4.
    pub fn signature(&self, message: &[u8]) -> Vec<u8> {
        let digest = hash(self.hash_name(), &[message]);
        let (scheme, numbers): (u16, Vec<Vec<u8>>) = match self.signer {
            Signer::P256 | Signer::OtherP256 => {
                let signature: p256::ecdsa::Signature =
                    p256_key(self.signer).sign_prehash(&digest).unwrap();
                let (r, s) = signature.split_bytes();
                (0x18, vec![r.to_vec(), s.to_vec()])
            }
            Signer::P384 => {
                let signature: p384::ecdsa::Signature = p384_key().sign_prehash(&digest).unwrap();
                let (r, s) = signature.split_bytes();
                (0x18, vec![r.to_vec(), s.to_vec()])
            }
            Signer::Rsassa => {
                let scheme = rsa::Pkcs1v15Sign::new::<Sha256>();
                (0x14, vec![rsa_key().sign(scheme, &digest).unwrap()])
            }
            Signer::Rsapss => {
                let scheme = rsa::Pss::new::<Sha256>();
                let mut random = rsa::rand_core::OsRng;
                let signature = rsa_key().sign_with_rng(&mut random, scheme, &digest);
                (0x16, vec![signature.unwrap()])
            }
        };
        let mut signature = scheme.to_be_bytes().to_vec();
        let hash: u16 = if self.signer == Signer::P384 {
            0x0c
        } else {
            0x0b
        };
        signature.extend(hash.to_be_bytes());
        for number in numbers {
            signature.extend((number.len() as u16).to_be_bytes());
            signature.extend(number);
        }
        signature
    }

    /// The key in PEM.
    pub fn key(&self) -> String {
        let ending = rsa::pkcs8::LineEnding::LF;
        match self.signer {
            Signer::P256 | Signer::OtherP256 => p256_key(self.signer)
                .verifying_key()
                .to_public_key_pem(ending),
            Signer::P384 => p384_key().verifying_key().to_public_key_pem(ending),
            Signer::Rsassa | Signer::Rsapss => rsa_key().to_public_key().to_public_key_pem(ending),
        }
        .unwrap()
    }
}

fn p256_key(signer: Signer) -> p256::ecdsa::SigningKey {
    let byte = if signer == Signer::P256 { 1 } else { 2 };
    p256::ecdsa::SigningKey::from_slice(&[byte; 32]).unwrap()
}

fn p384_key() -> p384::ecdsa::SigningKey {
    p384::ecdsa::SigningKey::from_slice(&[1; 48]).unwrap()
}

fn rsa_key() -> rsa::RsaPrivateKey {
    let number = |digits: &str| rsa::BigUint::parse_bytes(digits.as_bytes(), 16).unwrap();
    rsa::RsaPrivateKey::from_p_q(number(P), number(Q), 65537_u32.into()).unwrap()
}
