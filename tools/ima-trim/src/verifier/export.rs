// SPDX-License-Identifier: GPL-2.0

//! A state, signed by the verifier that has it: V26 of `Documentation/admin-guide/verifier.rst`.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use ima_trim_pure::instance::parse_hex;

use crate::pcrfile::hex;
use crate::quote::PublicKey;

use super::state::StateError;
use super::State;

/// What is signed begins with this, so that no signature of another kind can be taken for one.
const PURPOSE: &[u8] = b"ima-trim state export 1\n";

/// A state with a signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The text of the state, as it is signed.
    state: String,
    /// PKCS#1 v1.5 or ECDSA in DER, with SHA-256, of [`PURPOSE`] and the text, in hexadecimal.
    signature: String,
}

/// Why there is no export, or why it is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It is none.
    #[error("not what ima-trim state export wrote: {0}")]
    Json(#[from] serde_json::Error),
    /// It is not by that key.
    #[error("it is not signed by this key")]
    Forged,
    /// There is no state in it.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Export {
    /// Has a state signed: `sign` gives the signature of the bytes that it is given.
    ///
    /// # Errors
    ///
    /// If nothing was accepted yet, and what `sign` says.
    pub fn new<E: From<StateError>>(
        state: &State,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        if state.boot.is_none() {
            return Err(StateError::Nothing.into());
        }
        let state = state.to_json()?;
        let signature = hex(&sign(&signed(&state))?);
        Ok(Self { state, signature })
    }

    /// Reads an export. It is not believed by that.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, ExportError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The state, if this key has signed it.
    ///
    /// # Errors
    ///
    /// [`ExportError::Forged`], or if the state is none that is known here.
    pub fn verify(&self, key: &PublicKey) -> Result<State, ExportError> {
        let mut signature = vec![0; self.signature.len() / 2];
        if !parse_hex(self.signature.as_bytes(), &mut signature)
            || !key.has_signed(&signed(&self.state), &signature)
        {
            return Err(ExportError::Forged);
        }
        Ok(State::from_json(&self.state)?)
    }
}

/// As JSON.
impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string_pretty(self).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

fn signed(state: &str) -> Vec<u8> {
    [PURPOSE, state.as_bytes()].concat()
}
