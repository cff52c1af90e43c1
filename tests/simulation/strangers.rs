//! Captures of releases that have no protocol version in common.

use capturedrain_core::{
    model::{
        Body, CaptureId, Command, Envelope, Incarnation, KeyName, NodeEpoch, Now, Options, PROTOCOL, ProtocolRange,
        Registration, Term, encode,
    },
    process::{Effect, Event, Process},
    store::{LeaseId, Model, Op, Txn},
};

use crate::identity::identity;

fn registration(id: &str, node_epoch: u64, protocol: ProtocolRange) -> Registration {
    Registration { node_epoch: NodeEpoch(node_epoch), protocol, ..identity(&CaptureId::new(id).unwrap()) }
}

/// Whether a capture answers a heartbeat of another that registered after it.
fn answers(protocol: ProtocolRange) -> bool {
    let mut store = Model::new();
    for value in [registration("me", 7, PROTOCOL), registration("other", 2, protocol)] {
        let op = Op::Put { key: KeyName::Capture(value.id.clone()).key(), value: encode(&value), lease: None };
        store.txn(&Txn { compares: Vec::new(), ops: vec![op] });
    }
    let mut process = Process::new(registration("me", 0, PROTOCOL), Options::default());
    let now = Now::default();
    process.handle(Event::Wake, now);
    process.handle(Event::LeaseGranted { lease: LeaseId(1), sent_at: now.monotonic, nonce: 7 }, now);
    process.handle(Event::Loaded(store.list("", KeyName::WATCH_END)), now);
    process.handle(Event::Wake, now);
    let of = |id, node_epoch| Incarnation { capture: CaptureId::new(id).unwrap(), node_epoch: NodeEpoch(node_epoch) };
    assert_eq!(process.me(), Some(of("me", 7)));
    let body = Body::Command { term: Term(9), command: Command::Heartbeat(Box::default()) };
    let effects = process.handle(Event::Message(Envelope { from: of("other", 2), to: of("me", 7), body }), now);
    effects.iter().any(|effect| matches!(effect, Effect::Send { .. }))
}

#[test]
fn captures_without_a_common_version_exchange_no_messages() {
    assert!(answers(PROTOCOL));
    assert!(answers(ProtocolRange { min: PROTOCOL.max, max: PROTOCOL.max + 1 }));
    assert!(!answers(ProtocolRange { min: PROTOCOL.max + 1, max: PROTOCOL.max + 1 }));
}
