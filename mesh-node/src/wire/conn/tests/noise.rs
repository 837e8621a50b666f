//! Noise: whatever arrives, the codec neither panics nor keeps more than its bounds.

use super::*;

/// A conversation's bytes in one direction, with a little of everything.
fn conversation() -> Vec<Vec<u8>> {
    let mut client = Side::new(Role::Client, Limits::client());
    let mut frames = vec![client.sent()];
    for i in 0..6u32 {
        let id = 2 * i + 1;
        frames.push(frame_of(
            frame::HEADERS,
            frame::END_HEADERS,
            id,
            &connect_block(),
        ));
        frames.push(frame_of(frame::DATA, 0, id, &[i as u8; 700]));
        frames.push(frame_of(
            frame::DATA,
            frame::PADDED,
            id,
            &[4, 1, 2, 3, 0, 0, 0, 0],
        ));
        frames.push(frame::number(frame::WINDOW_UPDATE, id, 1000).to_vec());
        frames.push(frame_of(frame::PING, 0, 0, &[i as u8; 8]));
        frames.push(frame_of(frame::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, i as u8]));
        frames.push(frame_of(frame::HEADERS, 0, id + 100, &connect_block()[..5]));
        frames.push(frame_of(
            frame::CONTINUATION,
            frame::END_HEADERS,
            id + 100,
            &connect_block()[5..],
        ));
        frames.push(frame_of(frame::DATA, frame::END_STREAM, id, b""));
        frames.push(frame::number(frame::RST_STREAM, id, 8).to_vec());
    }
    frames
}

fn feed(role: Role, bytes: &[u8], rng: &mut fastrand::Rng) {
    let mut side = Side::new(role, Limits::server());
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rng.usize(1..=rest.len().min(2000)));
        if side.receive(now).is_err() {
            break;
        }
        for id in [1, 3, 101] {
            if rng.bool() {
                side.conn.respond(id, 200, &Headers::new(), rng.u8(..) == 0);
                side.send(id, &[9; 300]);
                side.conn.drained(id, 100);
            }
            match rng.u8(..) {
                0 => side.conn.finish(id),
                1 => drop(side.conn.remove(id, Code::CANCEL)),
                _ => {}
            }
        }
        rest = later;
    }
    assert!(side.conn.open_streams() <= side.conn.entries() && side.conn.entries() <= 400);
    assert!(side.conn.out.used() + side.conn.out.waiting() <= CAPACITY + (70 << 10));
    assert!(side.data.len() <= bytes.len());
}

#[test]
fn mutated_conversations_do_no_harm() {
    let frames = conversation();
    for seed in 0..4000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = Vec::new();
        for frame in &frames {
            match rng.u8(0..20) {
                0 => {}
                1 => bytes.extend([frame.as_slice(), frame].concat()),
                2 => bytes.extend(&frame[..rng.usize(..=frame.len())]),
                _ => bytes.extend(frame),
            }
        }
        for _ in 0..rng.usize(0..12) {
            // Behind the preface and settings, so that the noise is looked at.
            let at = rng.usize(60.min(bytes.len())..bytes.len());
            bytes[at] = rng.u8(..);
        }
        let role = if seed % 8 == 7 {
            Role::Client
        } else {
            Role::Server
        };
        let from = if role == Role::Client { 24 } else { 0 };
        feed(role, &bytes[from..], &mut rng);
    }
}

#[test]
fn random_frames_do_no_harm() {
    for seed in 0..3000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = greeting();
        for _ in 0..40 {
            let mut payload = vec![0; rng.usize(..64)];
            rng.fill(&mut payload);
            bytes.extend(frame_of(rng.u8(..12), rng.u8(..), rng.u32(..12), &payload));
        }
        feed(Role::Server, &bytes, &mut rng);
        feed(Role::Client, &bytes[24..], &mut rng);
    }
}
