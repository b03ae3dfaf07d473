//! Writes `fuzz/seeds` anew.

fn main() {
    sluice_fuzz::seeds::write(std::path::Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/seeds"
    )));
}
