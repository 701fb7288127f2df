//! Charts as SVG without a background.
//!
//! | module | holds |
//! |---|---|
//! | `bars` `memory` `percentiles` | ratios; memory over time; durations of operations |
//! | `canvas` | the area of a chart, its colours and styles |

pub(super) mod bars;
pub(super) mod canvas;
pub(super) mod memory;
pub(super) mod percentiles;
