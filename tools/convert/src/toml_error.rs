//! Mistakes in TOML, in one line.

/// The most characters of a line to show.
const SHOWN: usize = 60;

/// What is wrong with `text`, and where: the line, up to the end of the mistake.
pub fn toml_mistake(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim_end().replace('\n', ", ");
    let Some(span) = error.span().filter(|span| text.is_char_boundary(span.start)) else {
        return message;
    };
    let (before, after) = text.split_at(span.start);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let wrong = after.lines().next().unwrap_or_default();
    let wrong = wrong.get(..span.len()).unwrap_or(wrong);
    let shown = format!("{}{wrong}", &before[start..]);
    let shown = shown.trim();
    match shown.chars().count().saturating_sub(SHOWN) {
        _ if shown.is_empty() => format!("line {line}: {message}"),
        0 => format!("line {line}: `{shown}`: {message}"),
        more => {
            let end: String = shown.chars().skip(more).collect();
            format!("line {line}: `...{end}`: {message}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::toml_mistake;
    use std::collections::BTreeMap;

    #[test]
    fn mistakes_are_shown_with_their_line() {
        for (text, wanted) in [
            ("a = 1\nb = -1\n", "line 2: `b = -1`: invalid value: integer `-1`, expected u32"),
            ("a = [1,\n  'x']", "line 1: `a = [1,`: invalid type: sequence, expected u32"),
            ("a = \n", "line 1: `a =`: "),
            ("é = 1", "line 1: `é`: "),
            ("a = 'ü'", "line 1: `a = 'ü'`: "),
            ("a.b.c = 1\n", "line 1: `a"),
            ("", ""),
        ] {
            match toml::from_str::<BTreeMap<String, u32>>(text) {
                Ok(_) => assert_eq!(text, ""),
                Err(error) => {
                    let found = toml_mistake(text, &error);
                    assert!(found.starts_with(wanted) && !found.contains('\n'), "{found}");
                }
            }
        }
        let long = format!("a = [{}'x']", "1, ".repeat(50));
        let error = toml::from_str::<BTreeMap<String, Vec<u32>>>(&long).unwrap_err();
        let found = toml_mistake(&long, &error);
        assert!(found.starts_with("line 1: `...1, 1,") && found.contains("1, 'x'`: "), "{found}");
    }
}
