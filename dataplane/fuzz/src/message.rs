//! A slot of any bytes: what decodes encodes to the bytes that it was, or the two sides would not mean the same.

use sluice_dataplane::channel::codec::SLOT;
use sluice_dataplane::channel::message::Message;

pub(crate) fn run(data: &[u8]) {
    for chunk in data.chunks(SLOT) {
        let mut slot = [0; SLOT];
        slot[..chunk.len()].copy_from_slice(chunk);
        if let Ok(message) = Message::decode(&slot) {
            let again = message.encode().expect("what was decoded fits a slot");
            assert_eq!(again, slot, "one message, one encoding: {message:?}");
        }
    }
}
