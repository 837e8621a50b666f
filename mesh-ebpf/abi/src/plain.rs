//! How a type of the contract is declared: the macro writes the struct, a constructor, getters, the size
//! checks and the description that the layout hash covers.
//!
//! Invariant: a type made by `plain!` has no padding, so its bytes are always initialised.

/// A type whose every byte is initialised and for which every bit pattern is valid.
///
/// # Safety
/// The type must be `repr(C)`, without padding, and made of integers and other `Plain` types only.
pub unsafe trait Plain: Copy + 'static {
    /// The declaration, as covered by the layout hash.
    const LAYOUT: &'static str;
}

macro_rules! integers { ($($t:ty),*) => { $(
    // SAFETY: integers have no padding and no invalid bit pattern.
    unsafe impl Plain for $t { const LAYOUT: &'static str = stringify!($t); }
)* } }
integers!(u8, u16, u32, u64, i32);

macro_rules! plain {
    ($(#[$m:meta])* $name:ident [$size:literal] { $($(#[$fm:meta])* $f:ident: $t:ty,)* } zero { $($z:ident: $zt:ty = $zv:expr,)* }) => {
        $(#[$m])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($f: $t,)* $($z: $zt,)* }

        #[allow(clippy::too_many_arguments)]
        impl $name {
            /// All fields, in order; reserved ones are zero.
            #[inline(always)]
            pub const fn new($($f: $t),*) -> Self { Self { $($f,)* $($z: $zv,)* } }
            $($(#[$fm])* #[inline(always)] pub const fn $f(&self) -> $t { self.$f })*
        }

        const _: () = assert!(
            core::mem::size_of::<$name>() == $size && 0 $(+ core::mem::size_of::<$t>())* $(+ core::mem::size_of::<$zt>())* == $size,
            concat!(stringify!($name), ": the size is not what the contract says, or there is padding")
        );

        // SAFETY: repr(C), integers and Plain types only, and the assertion above excludes padding.
        unsafe impl $crate::plain::Plain for $name {
            const LAYOUT: &'static str = concat!(stringify!($name), "{", $(stringify!($f), ":", stringify!($t), ",",)* $(stringify!($z), ":", stringify!($zt), ",",)* "}");
        }
    };
}
pub(crate) use plain;
