//! The entry points of the program: what it allocates and frees passes through here.
//!
//! Only a block's first step, the sheaf of this CPU, is inlined; `path` has the other steps. The
//! table lists the modules from top to bottom. A module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | [`by_address`] | blocks freed by address alone, as in C |
//! | [`nolock`] | allocating and freeing without ever waiting |
//! | [`kmalloc`] | memory for any layout |
//! | `instrument` | blocks on their way out and in, as observers and debug builds see them |

pub mod by_address;
pub(crate) mod instrument;
pub mod kmalloc;
pub mod nolock;
