//! The slow paths behind the entry points. The table lists the modules from top to bottom. A module
//! imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | `large` | blocks that are runs of pages of their own |
//! | `objects` | the path of an object of a class, across all layers below |
//! | `deferred` | blocks freed in contexts that must not wait |

pub(crate) mod deferred;
#[cfg(not(loom))]
pub(crate) mod large;
#[cfg(not(loom))]
pub(crate) mod objects;
