//! Requests by curl: many and counted, or one after the other for as long as a test goes on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::lab::{Done, Lab, PATIENCE, run, wait_for};

/// One request as curl saw it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// curl's exit code: 0 if there was an answer.
    pub(crate) exit: u32,
    /// Whether a connection was made for it.
    pub(crate) connected: bool,
    /// The answer's status, or 0.
    pub(crate) code: u32,
    /// Who answered, if the built-in server did.
    pub(crate) pod: String,
}

impl Answer {
    pub(crate) fn is_good(&self) -> bool {
        (self.exit, self.code) == (0, 200)
    }
}

/// What curl prints of each transfer.
const FORMAT: &str = "%{exitcode} %{num_connects} %{http_code} %header{x-pod}\\n";

/// `count` requests, each over a connection of its own, for `url/1`, `url/2` and so on. None may fail.
pub(crate) fn requests(lab: &Lab, from: &str, url: &str, count: u32) -> Vec<Answer> {
    let url = format!("{url}/[1-{count}]");
    let words = [
        "curl",
        "-sS",
        "--max-time",
        "5",
        "-H",
        "Connection: close",
        "-o",
        "/dev/null",
        "-w",
        FORMAT,
        &url,
    ];
    let done = run(lab.exec(from, &words));
    let answers: Vec<_> = done.out.lines().map(parse).collect();
    let bad: Vec<_> = answers
        .iter()
        .filter(|answer| !answer.is_good() || !answer.connected)
        .collect();
    let good = answers.len() - bad.len();
    assert_eq!(
        good, count as usize,
        "{url} from {from}: {bad:?}\n{}",
        done.errors
    );
    answers
}

/// How often each pod answered.
pub(crate) fn by_pod(answers: &[Answer]) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.pod.clone()).or_insert(0) += 1;
    }
    counts
}

/// One request; its answer's text.
pub(crate) fn curl(lab: &Lab, from: &str, url: &str) -> Done {
    run(lab.exec(from, &["curl", "-sS", "--fail", "--max-time", "5", url]))
}

fn parse(line: &str) -> Answer {
    let fields: Vec<_> = line.split(' ').collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse().ok());
    let numbers = (number(0), number(1), number(2));
    let (Some(exit), Some(connects), Some(code)) = numbers else {
        panic!("curl printed {line:?}")
    };
    Answer {
        exit,
        connected: connects == 1,
        code,
        pod: fields.get(3).copied().unwrap_or_default().to_owned(),
    }
}

/// A curl after the other, from the start until [`Load::stop`].
pub(crate) struct Load {
    child: Child,
    answers: mpsc::Receiver<Answer>,
    taken: Vec<Answer>,
}

impl Load {
    pub(crate) fn start(lab: &Lab, from: &str, url: &str) -> Self {
        // SIGTERM waits for the curl that runs, so none is cut off.
        let script = format!(
            "trap stop=1 TERM; until [ $stop ]; do curl -sS --max-time 5 -o /dev/null -w '{FORMAT}' {url} || true; done"
        );
        let mut command = lab.exec(from, &["sh", "-c", &script]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in lines {
                // After the test's end nobody wants them.
                drop(sender.send(parse(&line.unwrap())));
            }
        });
        Self {
            child,
            answers,
            taken: Vec::new(),
        }
    }

    /// Waits for the next request's end.
    pub(crate) fn next(&mut self) -> &Answer {
        let answer = self.answers.recv_timeout(PATIENCE).unwrap();
        self.taken.push(answer);
        self.taken.last().unwrap()
    }

    /// Waits for so many.
    pub(crate) fn take(&mut self, count: usize) {
        for _ in 0..count {
            self.next();
        }
    }

    /// How many were waited for so far.
    pub(crate) fn taken(&self) -> usize {
        self.taken.len()
    }

    /// Ends it and gives all answers.
    pub(crate) fn stop(mut self) -> Vec<Answer> {
        self.end();
        let rest: Vec<_> = self.answers.iter().collect();
        let mut all = std::mem::take(&mut self.taken);
        all.extend(rest);
        all
    }

    fn end(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = Pid::from_child(&self.child);
        // It may have ended by itself, with its lab.
        let _gone = kill_process(pid, Signal::TERM);
        let _status = wait_for(&mut self.child, Duration::from_secs(10));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

/// Fails if any request did.
pub(crate) fn all_good(answers: &[Answer]) {
    let bad: Vec<_> = answers
        .iter()
        .enumerate()
        .filter(|(_, answer)| !answer.is_good())
        .collect();
    assert!(
        bad.is_empty(),
        "{} of {} requests failed: {bad:?}",
        bad.len(),
        answers.len()
    );
}
