//! Values that are made at compile time, except under loom, whose atomics register with the running
//! model.

/// Declares a function that is `const`, except under loom.
macro_rules! const_unless_loom {
    ($(#[$attribute:meta])* $visibility:vis const $($function:tt)*) => {
        #[cfg(not(loom))]
        $(#[$attribute])*
        $visibility const $($function)*
        #[cfg(loom)]
        $(#[$attribute])*
        $visibility $($function)*
    };
}

/// Makes an array of equal elements, as `[const { element }; len]`, also under loom.
macro_rules! array_of {
    ($element:expr; $len:ident) => {{
        #[cfg(not(loom))]
        {
            [const { $element }; $len]
        }
        #[cfg(loom)]
        {
            core::array::from_fn::<_, $len, _>(|_| $element)
        }
    }};
}

pub(crate) use {array_of, const_unless_loom};
