//! The README shows the very program that stands in `examples/`.

#[test]
fn the_readme_shows_the_lookup_example() {
    let (_, example) = include_str!("../../examples/lookup.rs").split_once("\n\n").unwrap();
    let (_, shown) = include_str!("../../README.md").split_once("```rust\n").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    assert_eq!(shown, example);
}
