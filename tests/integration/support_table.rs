//! The README's table of architectures is the command's.

use crate::trio::chatvec;

#[test]
fn the_readme_shows_the_table_of_architectures_as_the_command_prints_it() {
    let ran = chatvec(["architectures"]);
    ran.says(0, &[]);
    let readme = std::fs::read_to_string(format!("{}/README.md", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let shown = readme.split_once("$ chatvec architectures\n").expect("the README shows the command").1;
    let shown = shown.split_once("```").expect("the end of the block").0;
    assert_eq!(shown, ran.out, "run `chatvec architectures`, and put what it prints into README.md");
    let json = chatvec(["architectures", "--json"]).json();
    let all = json["architectures"].as_array().unwrap();
    assert!(all.iter().all(|a| ran.out.contains(a["name"].as_str().unwrap())));
    let asked = all.iter().filter(|a| a["ask"] == true).map(|a| a["name"].as_str().unwrap());
    let known: std::collections::BTreeSet<&str> = chatvec::infer::architectures().map(|(name, _)| name).collect();
    assert_eq!(asked.collect::<std::collections::BTreeSet<_>>(), known);
    assert!(all.iter().any(|a| a["name"] == "limite" && !a["doubts"].as_array().unwrap().is_empty()));
}
