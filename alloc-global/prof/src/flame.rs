//! Stacks in a line each, and a flame graph of them.

use std::io::Write;

use inferno::flamegraph::color::{BasicPalette, Palette};
use inferno::flamegraph::{self, Options};

use crate::failure::Failure;
use crate::stacks::Stacks;

/// Returns a line for each stack with a value above 0: its functions, the outermost first and
/// divided by semicolons, and the value.
fn lines(stacks: &Stacks) -> impl Iterator<Item = String> {
    let shown = stacks.stacks.iter().filter(|(_, value)| **value > 0);
    shown.map(|(stack, value)| {
        let name = |index: &usize| stacks.name(*index).replace(';', ":").replace(['\n', '\r'], " ");
        let names: Vec<_> = stack.iter().map(name).collect();
        let names = if names.is_empty() { "?".to_owned() } else { names.join(";") };
        format!("{names} {value}")
    })
}

/// Prints the lines.
pub(crate) fn print_collapsed(stacks: &Stacks, to: &mut impl Write) -> Result<(), Failure> {
    for line in lines(stacks) {
        writeln!(to, "{line}")?;
    }
    Ok(())
}

/// Returns a flame graph as SVG.
pub(crate) fn picture(stacks: &Stacks) -> Result<Vec<u8>, Failure> {
    let lines: Vec<_> = lines(stacks).collect();
    if lines.is_empty() {
        return Err(Failure::Other(format!("{}: there are no samples to draw", stacks.file)));
    }
    let mut options = Options::default();
    options.title = stacks.headline();
    options.count_name = stacks.kind.unit.clone();
    options.colors = Palette::Basic(BasicPalette::Mem);
    // The same functions have the same colours in each picture.
    options.hash = true;
    let mut picture = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut picture)
        .map_err(|error| Failure::Other(format!("{}: {error}", stacks.file)))?;
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::View;
    use crate::profile::tests::made;

    fn stacks(of: &[(&[&str], i64, &str)]) -> Stacks {
        let stacks = Stacks::new(&made(of), &View::default());
        stacks.unwrap_or_else(|error| panic!("{error:?}"))
    }

    #[test]
    fn separators_in_names_are_replaced() {
        let stacks = stacks(&[(&["[u8; 4]\nx", "main"], 3, ""), (&[], 2, ""), (&["main"], -1, "")]);
        let mut text = Vec::new();
        print_collapsed(&stacks, &mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "? 2\nmain;[u8: 4] x 3\n");
    }

    #[test]
    fn picture_has_all_functions() {
        let stacks = stacks(&[(&["f<'a&>", "main"], 3, ""), (&["g", "main"], 5, "")]);
        let picture = String::from_utf8(picture(&stacks).ok().unwrap()).unwrap();
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(&picture, options).unwrap();
        let titles = document.descendants().filter(|node| node.has_tag_name("title"));
        let titles: Vec<_> = titles.filter_map(|title| title.text()).collect();
        for name in ["f<'a&> (3 bytes, 37.50%)", "main (8 bytes, 100.00%)", "g (5 bytes, 62.50%)"] {
            assert!(titles.contains(&name), "{titles:?}");
        }
    }

    #[test]
    fn nothing_is_not_drawn() {
        assert!(matches!(picture(&stacks(&[])), Err(Failure::Other(_))));
    }
}
