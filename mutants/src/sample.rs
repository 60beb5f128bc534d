//! Samples that are spread evenly.

/// Returns `size` places of `total`, as far apart as possible. Another `round` has other places.
pub(crate) fn spread(total: usize, size: usize, round: usize) -> Vec<usize> {
    let size = size.min(total);
    let step = total.checked_div(size).unwrap_or_default().max(1);
    (0..size).map(|index| (index * total / size + round % step) % total).collect()
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn is_spread_over_all_and_has_nothing_twice() {
        assert_eq!(spread(10, 3, 0), [0, 3, 6]);
        assert_eq!(spread(10, 3, 1), [1, 4, 7]);
        assert_eq!(spread(3, 10, 7), [0, 1, 2]);
        assert!(spread(0, 10, 0).is_empty());
    }

    #[test]
    fn rounds_reach_every_place() {
        let mut seen: Vec<_> = (0..5).flat_map(|round| spread(100, 20, round)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }
}
