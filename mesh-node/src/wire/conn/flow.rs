//! Flow control in both directions.
//!
//! Invariants: the connection is credited when data is received, a stream when the application took it;
//! credit is given in quarters of a window, so that it costs few frames.

use std::io::{self, IoSliceMut};

use super::{Conn, Event, streams::Flags};
use crate::wire::{
    error::{Code, ConnError},
    frame,
};

/// What came of an attempt to send.
#[derive(Debug)]
pub enum Fill {
    /// So many bytes were taken; zero is the application's end of data.
    Taken(usize),
    /// The peer gave no window.
    NoWindow,
    /// The outgoing buffer is full.
    NoRoom,
    /// The stream takes no data: ended, reset or not answered.
    Closed,
    /// Reading from the application failed.
    Failed(io::Error),
}

impl<S: Default> Conn<S> {
    /// Lets `read` put at most `max` bytes straight into DATA frames.
    pub fn fill(
        &mut self,
        id: u32,
        max: usize,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> Fill {
        if !self.streams.may_send(id) {
            return Fill::Closed;
        }
        let Some(entry) = self.streams.get(id) else {
            return Fill::Closed;
        };
        let window = i64::from(entry.send_window).min(self.send_window);
        if window <= 0 {
            return Fill::NoWindow;
        }
        match self.out.fill(id, max.min(window as usize), read) {
            None => Fill::NoRoom,
            Some(Err(e)) => Fill::Failed(e),
            Some(Ok(n)) => {
                entry.send_window -= n as i32;
                self.send_window -= n as i64;
                self.counter.sent();
                Fill::Taken(n)
            }
        }
    }

    /// Whether the stream may send now, as far as windows go.
    pub fn has_window(&mut self, id: u32) -> bool {
        self.send_window > 0
            && self
                .streams
                .get(id)
                .is_some_and(|entry| entry.send_window > 0)
    }

    /// The application took `n` bytes.
    pub fn drained(&mut self, id: u32, n: usize) {
        let window = self.stream_window();
        let Some(entry) = self.streams.get_live(id) else {
            return;
        };
        entry.owed += n as u32;
        if entry.owed >= window / 4 && !entry.flags.has(Flags::RECEIVED_END) {
            let credit = std::mem::take(&mut entry.owed);
            entry.receive_left += credit as i32;
            self.out
                .put(&frame::number(frame::WINDOW_UPDATE, id, credit));
        }
    }

    /// A DATA frame of `len` bytes arrived: the connection's part of flow control.
    pub(super) fn received(&mut self, len: usize) -> Result<(), ConnError> {
        self.receive_left -= len as i64;
        if self.receive_left < 0 {
            return Err(ConnError::new(
                Code::FLOW_CONTROL_ERROR,
                "more data than the connection's window",
            ));
        }
        self.receive_owed += len as u32;
        if self.receive_owed >= self.limits.connection_window.max(frame::DEFAULT_WINDOW) / 4 {
            let credit = std::mem::take(&mut self.receive_owed);
            self.receive_left += i64::from(credit);
            self.out
                .put(&frame::number(frame::WINDOW_UPDATE, 0, credit));
        }
        Ok(())
    }

    /// A WINDOW_UPDATE arrived.
    pub(super) fn window_update(
        &mut self,
        id: u32,
        increment: u32,
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        let max = i64::from(frame::MAX_WINDOW);
        if id == 0 {
            if increment == 0 {
                return Err(ConnError::new(
                    Code::PROTOCOL_ERROR,
                    "a window update of nothing",
                ));
            }
            let blocked = self.send_window <= 0;
            self.send_window += i64::from(increment);
            if self.send_window > max {
                return Err(ConnError::new(
                    Code::FLOW_CONTROL_ERROR,
                    "a connection window above 2^31-1",
                ));
            }
            if blocked {
                events.push(Event::Windows);
            }
            return Ok(());
        }
        let Some(entry) = self.streams.get_live(id) else {
            return Ok(());
        };
        if increment == 0 {
            return self.stream_error(id, Code::PROTOCOL_ERROR, events);
        }
        let blocked = entry.send_window <= 0;
        // Both are at most 2^31-1, so only an excess can overflow.
        let Some(window) = entry.send_window.checked_add(increment as i32) else {
            return self.stream_error(id, Code::FLOW_CONTROL_ERROR, events);
        };
        entry.send_window = window;
        if blocked {
            events.push(Event::Window { id });
        }
        Ok(())
    }

    /// The peer changed the window of every stream.
    pub(super) fn initial_window(
        &mut self,
        window: u32,
        events: &mut Vec<Event>,
    ) -> Result<(), ConnError> {
        let change = i64::from(window) - i64::from(self.peer.initial_window);
        self.peer.initial_window = window;
        for (_, entry) in self.streams.each() {
            // Below zero it stays above -2^31: only what was sent within an earlier window can be missing.
            let Ok(window) = i32::try_from(i64::from(entry.send_window) + change) else {
                return Err(ConnError::new(
                    Code::FLOW_CONTROL_ERROR,
                    "a setting makes a window larger than 2^31-1",
                ));
            };
            entry.send_window = window;
        }
        if change > 0 {
            events.push(Event::Windows);
        }
        Ok(())
    }
}
