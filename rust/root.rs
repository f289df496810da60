// SPDX-License-Identifier: GPL-2.0

//! The root of the module: what of it other code of the kernel can call, and what makes sure that
//! nobody does any more before it goes. `src/` is handed what it may use.

use super::{
    claim::Claim,
    securityfs::Directory,
    workqueue::Workqueue, //
};
use crate::{
    files::FILES,
    module::{
        self,
        Loaded, //
    },
    trimmer::Trimmer,
};
use kernel::prelude::*;

/// The module. What its code runs in is gone when it is dropped: first the files, then the work
/// that is under way. Only then does the log have the values, which nothing changes any more.
pub(crate) struct ImaTrim {
    _directory: Directory<Trimmer>,
    _workqueue: Workqueue,
    _loaded: Loaded,
}

impl kernel::Module for ImaTrim {
    fn init(this_module: &'static ThisModule) -> Result<Self> {
        let workqueue = Workqueue::new()?;
        let claim = Claim::take().ok_or(EBUSY)?;
        let trimmer = module::load(claim, workqueue.handle())?;
        // Last, and nothing that can fail may follow.
        let directory =
            Directory::new(this_module, c"ima_trim", &trimmer, &FILES).inspect_err(|_| {
                log_err!(
                    "the files in securityfs cannot be made: is it there, and is ima_trim free?"
                )
            })?;

        Ok(Self {
            _directory: directory,
            _workqueue: workqueue,
            _loaded: Loaded::new(trimmer),
        })
    }
}
