// SPDX-License-Identifier: GPL-2.0

//! What is written to a file becomes a request that may be carried out: here, and nowhere else.
//!
//! If the module was built with certificates, what changes something has to be signed: a PKCS#7
//! message, of which nothing is looked at before the signature is right. It has to name this load of
//! the module, so that it is of no use to any other, nor on another machine. What changes nothing
//! needs no signature.

#![forbid(unsafe_code)]

use crate::{
    errno::Errno,
    instance::Instance,
    machine::Machine,
    refusal::{
        unread,
        Refusal, //
    },
    request::{
        Unread,
        MAX_REQUEST, //
    },
    rust::keyring::{
        Authority,
        Licence,
        Verified, //
    },
    signature::is_message,
    trimmer::Trimmer,
};
use core::ops::Deref;
use kernel::prelude::*;

/// A kind of request.
pub(crate) trait Readable: Sized {
    /// Reads one.
    fn read<'t>(text: &'t [u8], machine: &Machine) -> Result<Self, Refusal<'t>>;

    /// The load of the module that it is for, if it says so.
    fn instance(&self) -> Option<Instance>;

    /// Whether it changes nothing.
    fn is_dry_run(&self) -> bool;
}

/// A request that may be carried out.
pub(crate) struct Permitted<R> {
    request: R,
    licence: Option<Licence>,
}

impl<R> Permitted<R> {
    /// The right to change what the request is to change. There is none for a dry run.
    pub(crate) fn licence(&self) -> Option<&Licence> {
        self.licence.as_ref()
    }

    /// Both.
    pub(crate) fn into_parts(self) -> (R, Option<Licence>) {
        (self.request, self.licence)
    }
}

impl<R> Deref for Permitted<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.request
    }
}

impl Trimmer {
    /// Reads a request, and makes sure that it may be carried out.
    ///
    /// `written` is what was written, or why that could not be read. What was signed is kept in
    /// `signed`, as a refusal may show a part of it. Sleeps; no lock may be held.
    pub(crate) fn read<'t, R: Readable>(
        &self,
        written: Result<&'t [u8]>,
        signed: &'t mut Option<Verified>,
    ) -> Result<Permitted<R>, Refusal<'t>> {
        let written = written.map_err(unread)?;
        let is_signed = is_message(written);
        let (text, licence) = match (&self.authority, is_signed) {
            (Authority::Anybody(_), true) => return Err(Refusal::Signed),
            (Authority::Anybody(anybody), false) => (short(written)?, Some(anybody.licence())),
            (Authority::Signers(_), false) => (short(written)?, None),
            (Authority::Signers(keyring), true) => {
                let verified = keyring.verify(written).map_err(Refusal::Signature)?;
                let verified = &*signed.insert(verified);

                (verified.text(), Some(verified.licence()))
            }
        };
        let request = R::read(text, &self.machine)?;
        let licence = match licence {
            _ if request.is_dry_run() => None,
            None => return Err(Refusal::Unsigned),
            licence => licence,
        };

        if is_signed && request.instance().is_none() {
            return Err(Refusal::NoInstance);
        }
        self.refuse_others(request.instance())?;
        Ok(Permitted { request, licence })
    }
}

/// A text that is no longer than a request may be. Messages may be longer.
fn short(text: &[u8]) -> Result<&[u8], Refusal<'_>> {
    if text.len() > MAX_REQUEST {
        Err(Refusal::Unread(Unread(Errno::TooBig)))
    } else {
        Ok(text)
    }
}
