// SPDX-License-Identifier: GPL-2.0

//! Work that a thread of the kernel does: what talks to the TPM, and what goes on when the call
//! that began it has returned.
//!
//! Some drivers of TPMs wait interruptibly, `tpm_tis` with interrupts among them, and give up a
//! command when `TIF_SIGPENDING` is set (`wait_for_tpm_stat()`, `drivers/char/tpm/tpm_tis_core.c`).
//! A task that blocks all signals has it set all the same when it is frozen by its control group,
//! traced, stopped, or killed by another thread (`recalc_sigpending_tsk()`, `kernel/signal.c`). IMA
//! goes on without the extend, and from then on no replay gives what the TPM has. A thread of the
//! kernel gets no signals. So whatever talks to the TPM asks for a [`KernelThread`], which only
//! work here has.
//!
//! The queue is freezable (`WQ_FREEZABLE`): before the TPM is suspended, work that is under way
//! comes to its end, and what is queued waits until the system has resumed.
//!
//! Not supported: delaying, cancelling, queues of the kernel.

use super::ffi;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    alloc::AllocError,
    bindings, new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    types::Opaque,
    workqueue::{
        impl_has_work,
        new_work,
        Queue as KernelQueue,
        Work,
        WorkItem, //
    },
};

/// The current task is a thread of the kernel, that no signal reaches.
///
/// # Invariants
///
/// It was made for work that runs on a workqueue, and lives no longer than that.
pub(crate) struct KernelThread(PhantomData<*mut ()>);

/// A workqueue, as long as it is there.
///
/// # Invariants
///
/// What is in `queue` is a workqueue that was not destroyed.
#[pin_data]
struct Shared {
    #[pin]
    queue: Mutex<Option<NonNull<bindings::workqueue_struct>>>,
}

// SAFETY: Any task may queue work, and destroy a workqueue that it has taken out.
unsafe impl Send for Shared {}
// SAFETY: As above; the mutex has the pointer.
unsafe impl Sync for Shared {}

/// The owner of the workqueue. Dropping it waits until all work has ended, so that the module can
/// go, and none can be begun any more.
///
/// It must not be dropped by work of its own, which would wait for itself.
pub(super) struct Workqueue(Arc<Shared>);

impl Workqueue {
    /// A queue without work.
    pub(super) fn new() -> Result<Self> {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                queue <- new_mutex!(None, "ima_trim::Workqueue"),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The function has no requirements.
        let queue = unsafe { ffi::ima_trim_workqueue() };

        // INVARIANT: It was just made.
        *shared.queue.lock() = Some(NonNull::new(queue).ok_or(ENOMEM)?);
        Ok(Self(shared))
    }

    /// A handle, to have work done.
    pub(super) fn handle(&self) -> Queue {
        Queue(self.0.clone())
    }
}

impl Drop for Workqueue {
    fn drop(&mut self) {
        let queue = self.0.queue.lock().take();

        if let Some(queue) = queue {
            // SAFETY: By the invariants of `Shared` it is there, and nobody else finds it any more.
            // Waits until all work has ended and its code was left.
            unsafe { bindings::destroy_workqueue(queue.as_ptr()) };
        }
    }
}

/// What a thread of the kernel can do.
pub(crate) trait Job: FnOnce(&KernelThread) + Send + Unpin + 'static {}

impl<F: FnOnce(&KernelThread) + Send + Unpin + 'static> Job for F {}

/// Where work is begun.
#[derive(Clone)]
pub(crate) struct Queue(Arc<Shared>);

/// Why there is no answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallError {
    /// The caller was killed, and the work goes on; or the queue is gone, as the module is about
    /// to.
    Interrupted,
    /// There is no memory for it, and it was not begun.
    NoMemory,
}

impl Queue {
    /// Has `work` done, without waiting for it. False, and it is dropped, if the owner of the queue
    /// is gone.
    pub(crate) fn begin<F: Job>(&self, item: Item<F>, work: F) -> bool {
        let place = self.0.queue.lock();
        let Some(queue) = *place else {
            return false;
        };

        *item.0.work.lock() = Some(work);
        // SAFETY: By the invariants of `Shared` it is not destroyed as long as the mutex is held.
        let queue = unsafe { KernelQueue::from_raw(queue.as_ptr()) };
        // It is not queued yet, as nobody else has the item.
        queue.enqueue(item.0).is_ok()
    }

    /// Has `work` done, and waits for what it gives.
    ///
    /// Killing the caller ends the waiting, not the work. No lock may be held that the work takes.
    pub(crate) fn call<R, F>(&self, work: F) -> Result<R, CallError>
    where
        R: Send + Unpin + 'static,
        F: FnOnce(&KernelThread) -> R + Send + Unpin + 'static,
    {
        let item = Item::new().map_err(|AllocError| CallError::NoMemory)?;
        let answer = Arc::pin_init(Answer::new(), GFP_KERNEL).map_err(|_| CallError::NoMemory)?;
        let answered = answer.clone();

        let begun = self.begin(item, move |thread: &KernelThread| {
            let given = work(thread);

            *answered.given.lock() = Some(given);
            answered.finish();
        });
        if !begun {
            return Err(CallError::Interrupted);
        }
        answer.wait()?;
        let given = answer.given.lock().take();
        given.ok_or(CallError::Interrupted)
    }
}

/// Room for work, taken before it is certain that there will be some.
pub(crate) struct Item<F: Job>(Arc<Inner<F>>);

impl<F: Job> Item<F> {
    /// Allocates it.
    pub(crate) fn new() -> Result<Self, AllocError> {
        let inner = pin_init!(Inner {
            link <- new_work!("ima_trim::Item"),
            work <- new_mutex!(None, "ima_trim::Item"),
        });

        // Nothing but the allocation can fail.
        Arc::pin_init(inner, GFP_KERNEL)
            .map(Self)
            .map_err(|_| AllocError)
    }
}

#[pin_data]
struct Inner<F> {
    #[pin]
    link: Work<Self>,
    #[pin]
    work: Mutex<Option<F>>,
}

impl_has_work! {
    impl{F: Job} HasWork<Self> for Inner<F> { self.link }
}

impl<F: Job> WorkItem for Inner<F> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let work = this.work.lock().take();

        if let Some(work) = work {
            // INVARIANT: This is work.
            work(&KernelThread(PhantomData));
        }
    }
}

/// What a call waits for.
#[pin_data]
struct Answer<R> {
    #[pin]
    given: Mutex<Option<R>>,
    #[pin]
    finished: Opaque<bindings::completion>,
}

// SAFETY: A completion may be waited for and completed by any task.
unsafe impl<R: Send> Send for Answer<R> {}
// SAFETY: As above; what is given is in a mutex.
unsafe impl<R: Send> Sync for Answer<R> {}

impl<R> Answer<R> {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            given <- new_mutex!(None, "ima_trim::Answer"),
            finished <- Opaque::ffi_init(|finished: *mut bindings::completion| {
                // SAFETY: It is memory for a completion.
                unsafe { bindings::init_completion(finished) };
            }),
        })
    }

    fn finish(&self) {
        // SAFETY: It was initialised, and is not freed as long as `self` is there.
        unsafe { bindings::complete_all(self.finished.get()) };
    }

    /// Waits until it is finished, or the task is killed.
    fn wait(&self) -> Result<(), CallError> {
        // SAFETY: As above.
        match unsafe { bindings::wait_for_completion_killable(self.finished.get()) } {
            0 => Ok(()),
            _ => Err(CallError::Interrupted),
        }
    }
}
