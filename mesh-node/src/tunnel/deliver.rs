//! What a tunnel received goes to its streams: content straight to the application's socket where possible.
//!
//! Invariants: content is written in the order in which it came; what an application does not take at once
//! waits in its stream's slot, bounded by the stream's window; a stream is credited for what was taken.

use std::io::{self, IoSlice};

use super::{
    shared::{Inner, Slot},
    spin,
};
use crate::wire::{conn::Event, error::Code};

/// Slices in one write to an application.
const SLICES: usize = 16;

/// Hands events to the streams they belong to; data goes straight to the application where possible.
pub fn deliver(inner: &mut Inner, buf: &[u8], events: &mut Vec<Event>) {
    let mut queue = events.drain(..).peekable();
    while let Some(event) = queue.next() {
        match event {
            Event::Data { id, start, end } => {
                let mut slices = [IoSlice::new(&[]); SLICES];
                slices[0] = IoSlice::new(&buf[start..end]);
                let (mut count, mut total) = (1, end - start);
                while count < SLICES
                    && let Some(Event::Data { start, end, .. }) = queue
                        .next_if(|next| matches!(next, Event::Data { id: next, .. } if *next == id))
                {
                    slices[count] = IoSlice::new(&buf[start..end]);
                    count += 1;
                    total += end - start;
                }
                data(inner, id, &slices[..count], total);
            }
            Event::Request { id, .. } if inner.unattended => {
                inner.conn.remove(id, Code::REFUSED_STREAM);
            }
            Event::Request { id, request } => {
                inner.incoming.push_back((id, request));
                if let Some(waker) = inner.acceptor.take() {
                    waker.wake();
                }
            }
            Event::Response { id, response } => {
                with(inner, id, |slot| slot.response = Some(response))
            }
            Event::End { id } => with(inner, id, |slot| slot.ended = true),
            Event::Reset { id, code } => {
                with(inner, id, |slot| {
                    slot.reset = Some(code);
                    if code != Code::NO_ERROR {
                        slot.pending = None;
                    }
                });
            }
            Event::Window { id } => with(inner, id, |_| ()),
            Event::Windows => inner.conn.each().for_each(|(_, slot)| slot.wake()),
            Event::Pong | Event::GoAway { .. } => {}
        }
    }
}

fn with(inner: &mut Inner, id: u32, change: impl FnOnce(&mut Slot)) {
    if let Some(slot) = inner.conn.get(id) {
        change(slot);
        slot.wake();
    }
}

/// Content of one stream: to the application's socket, and what it does not take into `pending`.
fn data(inner: &mut Inner, id: u32, slices: &[IoSlice<'_>], total: usize) {
    spin::touch(std::ptr::from_ref(inner).addr(), id);
    let Some(slot) = inner.conn.get(id) else {
        return;
    };
    let mut taken = 0;
    if let Some(sink) = slot
        .sink
        .as_ref()
        .filter(|_| slot.is_drained() && slot.failed.is_none())
    {
        let written = match slices {
            [only] => sink.try_write(only),
            _ => sink.try_write_vectored(slices),
        };
        match written {
            Ok(n) => taken = n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => {
                slot.failed = Some(e.kind());
                slot.wake();
            }
        }
        if let Some(meter) = &slot.meter {
            meter.add_backward(taken);
        }
    }
    if slot.failed.is_some() {
        return;
    }
    if taken < total {
        let first = slot.is_drained();
        let pending = slot.pending.get_or_insert_default();
        let mut skip = taken;
        for slice in slices {
            let from = skip.min(slice.len());
            pending.extend(&slice[from..]);
            skip -= from;
        }
        if first {
            slot.wake();
        }
    }
    if taken > 0 {
        inner.conn.drained(id, taken);
    }
}
