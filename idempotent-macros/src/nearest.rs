//! Finds the intended word for a misspelt one.

/// Returns the word of `words` that is only a few letters away from `misspelt`.
pub(crate) fn nearest<'a>(misspelt: &str, words: &[&'a str]) -> Option<&'a str> {
    let (distance, word) = words.iter().map(|word| (edits(misspelt, word), *word)).min()?;
    (distance <= misspelt.len().max(3) / 3).then_some(word)
}

/// Returns the number of letters that must be added, removed, replaced or swapped with their
/// neighbour.
fn edits(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut table = vec![vec![0; to.len() + 1]; from.len() + 1];
    for (row, line) in table.iter_mut().enumerate() {
        line[0] = row;
    }
    table[0] = (0..=to.len()).collect();
    for row in 1..=from.len() {
        for column in 1..=to.len() {
            let replaced =
                table[row - 1][column - 1] + usize::from(from[row - 1] != to[column - 1]);
            let mut fewest =
                replaced.min(table[row - 1][column] + 1).min(table[row][column - 1] + 1);
            if row > 1
                && column > 1
                && from[row - 1] == to[column - 2]
                && from[row - 2] == to[column - 1]
            {
                fewest = fewest.min(table[row - 2][column - 2] + 1);
            }
            table[row][column] = fewest;
        }
    }
    table[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    const WORDS: [&str; 4] = ["key", "ttl", "on_conflict", "fingerprint"];

    #[test]
    fn a_slip_of_the_finger_finds_its_word() {
        assert_eq!(nearest("tll", &WORDS), Some("ttl"));
        assert_eq!(nearest("kye", &WORDS), Some("key"));
        assert_eq!(nearest("keys", &WORDS), Some("key"));
        assert_eq!(nearest("onconflict", &WORDS), Some("on_conflict"));
        assert_eq!(nearest("fingerprnt", &WORDS), Some("fingerprint"));
    }

    #[test]
    fn another_word_finds_none() {
        assert_eq!(nearest("retries", &WORDS), None);
        assert_eq!(nearest("", &WORDS), None);
    }
}
