// SPDX-License-Identifier: GPL-2.0

//! Work that goes on when the call that began it has returned, on a workqueue of the kernel.
//!
//! `kernel::workqueue` has all that is needed but two things: a queue that is not deprecated, and
//! waiting until work has ended, without which a module cannot go.
//!
//! Not supported: more than one job at a time, delaying, cancelling.

use kernel::{
    bindings, new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Queue,
        Work,
        WorkItem, //
    },
};

/// Something to be done.
pub(crate) trait Job: Send + Unpin + 'static {
    /// Does it. May sleep.
    fn run(self);
}

/// Does one job after the other.
///
/// Whoever has one waits for it, by [`Worker::wait`], before the module goes.
#[pin_data]
pub(crate) struct Worker<T: Job> {
    #[pin]
    work: Work<Self>,
    /// The job that waits to be done. Never held together with another lock.
    #[pin]
    job: Mutex<Option<T>>,
}

impl_has_work! {
    impl{T: Job} HasWork<Self> for Worker<T> { self.work }
}

impl<T: Job> WorkItem for Worker<T> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let job = this.job.lock().take();

        if let Some(job) = job {
            job.run();
        }
    }
}

impl<T: Job> Worker<T> {
    /// A worker with nothing to do.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                work <- new_work!("ima_trim::Worker"),
                job <- new_mutex!(None, "ima_trim::Worker"),
            }),
            GFP_KERNEL,
        )
    }

    /// Has a job done. The caller makes sure that the one before has begun.
    pub(crate) fn begin(this: &Arc<Self>, job: T) {
        // SAFETY: The kernel makes this queue when it starts, before any module, and keeps it. Work
        // on it is bound to no processor.
        let queue = unsafe { Queue::from_raw(bindings::system_dfl_wq) };

        *this.job.lock() = Some(job);
        // If the work is queued already, that one finds the job.
        let _ = queue.enqueue(this.clone());
    }

    /// Waits until the job that was begun last has ended, and all of its code has been left.
    pub(crate) fn wait(&self) {
        // SAFETY: The work was initialised, and is not dangling as `self` is not. No lock is held
        // that a job takes.
        unsafe { bindings::flush_work(Work::raw_get(&raw const self.work)) };
    }
}
