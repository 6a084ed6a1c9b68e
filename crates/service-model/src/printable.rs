//! Foreign text as it may be logged.

/// `text` on one line without control or invisible characters, at most `most` characters and an ellipsis. What Kubernetes
/// allows in a name stays unchanged.
pub fn printable(text: &str, most: usize) -> String {
    let shown = text.chars().flat_map(|char| {
        let is_plain = matches!(char, '"' | '\'' | '\\');
        let plain = is_plain.then_some(char).into_iter();
        plain.chain(char.escape_debug().filter(move |_| !is_plain))
    });
    let mut shown: String = shown.take(most + 1).collect();
    if let Some((end, _)) = shown.char_indices().nth(most) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_quotes_stay() {
        let text = "a\n\u{1b}[31m\u{200b} \"b\" 'c' \\ Ä";
        let shown = "a\\n\\u{1b}[31m\\u{200b} \"b\" 'c' \\ Ä";
        assert_eq!(printable(text, 100), shown);
    }

    #[test]
    fn long_text_ends_in_an_ellipsis() {
        assert_eq!(printable("abc", 3), "abc");
        assert_eq!(printable("abcd", 3), "abc…");
        assert_eq!(printable(&"\n".repeat(9), 3).chars().count(), 4);
    }
}
