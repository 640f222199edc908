//! tmp
#![allow(missing_docs)]
#[derive(Default)]
pub struct ParamCounts {
    pub total: u64,
    pub shared: u64,
    pub expert: u64,
    pub experts: u64,
}
pub struct Card;
pub fn load_card(
    _: &std::path::Path,
    _: &serde_json::Value,
    _: Option<&str>,
    _: ParamCounts,
) -> crate::Result<(Card, Vec<String>)> {
    Ok((Card, vec![]))
}
