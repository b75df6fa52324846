//! A progress bar on stderr, for work that takes long.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::borrow::Cow;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long work takes before the bar shows up.
const DELAY: Duration = Duration::from_secs(1);
const REDRAW: Duration = Duration::from_millis(250);

/// A bar that shows up after a second, on a terminal only, and goes when dropped.
pub struct Progress {
    bar: ProgressBar,
    /// Dropped to stop `waiting`.
    running: Option<mpsc::Sender<()>>,
    /// Waits for the second to pass.
    waiting: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts work of so many steps.
    pub fn start(message: impl Into<Cow<'static, str>>, steps: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::hidden()).with_message(message);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} %, {elapsed_precise}") {
            bar.set_style(style);
        }
        let (running, stopped) = mpsc::channel();
        let late = bar.clone();
        let wait = move || {
            if stopped.recv_timeout(DELAY) == Err(RecvTimeoutError::Timeout) {
                late.set_draw_target(ProgressDrawTarget::stderr());
                late.enable_steady_tick(REDRAW);
            }
        };
        // Without a thread there is no bar.
        let waiting = std::thread::Builder::new().spawn(wait).ok();
        Self { bar, running: Some(running), waiting }
    }

    /// One more step is done.
    pub fn advance(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.running = None;
        if let Some(waiting) = self.waiting.take() {
            // It can't have panicked, and if it had, there would be no bar to clear.
            let _ = waiting.join();
        }
        self.bar.finish_and_clear();
    }
}
