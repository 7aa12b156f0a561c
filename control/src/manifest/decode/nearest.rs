//! Which word was meant: the nearest of those known, if it is near enough to be a slip.

/// The one of `known` that `word` is most likely a slip of.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    let scored = known
        .iter()
        .map(|k| (distance(&lower, &k.to_ascii_lowercase()), *k));
    // A third of the letters wrong is a different word.
    scored
        .min()
        .filter(|(d, _)| *d <= word.chars().count().div_ceil(3))
        .map(|(_, k)| k)
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != *y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_another_word_is_not() {
        let known = ["selector", "ports", "type"];
        for (word, meant) in [
            ("selectors", Some("selector")),
            ("Port", Some("ports")),
            ("typ", Some("type")),
            ("template", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
    }
}
