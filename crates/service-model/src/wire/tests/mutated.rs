//! A corpus of objects and mutations of it: whatever is decoded, conversion returns.

use super::*;

/// Decodes the bytes as an object of each kind.
fn decode(bytes: &[u8]) -> fuzz::ResultHash {
    fn of<W: Object + serde::de::DeserializeOwned>(bytes: &[u8]) -> fuzz::ResultHash
    where
        W::Model: std::fmt::Debug,
    {
        let Ok(object) = serde_json::from_slice::<W>(bytes) else {
            return 0;
        };
        match object.into_model(&mut ConversionContext::default()) {
            Err(invalid) => fuzz::outcome(format!("{}: {}", invalid.kind, invalid.field)),
            Ok(converted) => {
                let warnings = converted.warnings.iter();
                let fields: Vec<String> = warnings.map(|w| w.field.to_string()).collect();
                let _ = format!("{:?}", converted.object);
                fuzz::outcome(fields)
            }
        }
    }
    fuzz::outcome([
        of::<Service>(bytes),
        of::<EndpointSlice>(bytes),
        of::<Node>(bytes),
        of::<ServiceCidr>(bytes),
    ])
}

#[test]
fn mutated_objects_do_no_harm() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/objects");
    fuzz::fuzz(&corpus, [], decode);
}
