//! Kernel-wide state on one virtual CPU.

/// A kernel-wide object. In the guest it is a plain static; hosted, every thread has its own, so tests run side by side.
///
/// The object provides its own interior mutability (`Cell`, `RefCell`).
#[cfg(not(feature = "hosted"))]
pub struct Global<T>(T);

// SAFETY: the guest has one virtual CPU and the kernel is not preempted (interrupts in kernel code only set an atomic
// flag and never run Rust code that reaches a Global), so no two accesses overlap except by re-entrance on one stack,
// which `Cell` and `RefCell` inside T handle as on a single thread.
#[cfg(not(feature = "hosted"))]
unsafe impl<T> Sync for Global<T> {}

#[cfg(not(feature = "hosted"))]
impl<T> Global<T> {
    /// Used by [`crate::global!`].
    #[doc(hidden)]
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// Runs `f` on the object.
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.0)
    }
}

/// A kernel-wide object; see the guest's version.
#[cfg(feature = "hosted")]
pub struct Global<T: 'static>(pub &'static std::thread::LocalKey<T>);

#[cfg(feature = "hosted")]
impl<T> Global<T> {
    /// Runs `f` on this thread's object.
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        self.0.with(f)
    }
}

/// Declares a [`Global`]: `global! { pub(crate) static NAME: Type = const_expression; }`.
#[macro_export]
macro_rules! global {
    ($(#[$meta:meta])* $vis:vis static $name:ident: $ty:ty = $value:expr;) => {
        #[cfg(not(feature = "hosted"))]
        $(#[$meta])*
        $vis static $name: $crate::sync::Global<$ty> = $crate::sync::Global::new($value);
        #[cfg(feature = "hosted")]
        $(#[$meta])*
        $vis static $name: $crate::sync::Global<$ty> = {
            std::thread_local! { static LOCAL: $ty = const { $value }; }
            $crate::sync::Global(&LOCAL)
        };
    };
}
