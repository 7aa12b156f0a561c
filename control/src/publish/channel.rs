//! The real dataplane, over its channel.

use std::path::PathBuf;
use std::time::Duration;

use sluice_dataplane::channel::client::{self, Connection};
use sluice_dataplane::channel::record::{Key, Record};
use sluice_dataplane::index::Generation;

use super::{Dataplane, Inventory, PublishError};

/// A dataplane that listens at a path.
#[derive(Debug)]
pub struct Channel {
    path: PathBuf,
    patience: Duration,
    connection: Option<Connection>,
}

impl Channel {
    /// Not connected yet. A dataplane that is silent for longer than `patience` where it should answer is given up.
    pub const fn new(path: PathBuf, patience: Duration) -> Self {
        Self {
            path,
            patience,
            connection: None,
        }
    }
}

impl Dataplane for Channel {
    fn connect(&mut self) -> Result<Inventory, String> {
        // The dataplane takes one connection: the old one must be gone first.
        self.connection = None;
        let (connection, inventory) =
            Connection::connect_within(&self.path, self.patience).map_err(|error| error.to_string())?;
        self.connection = Some(connection);
        Ok(Inventory {
            generation: inventory.generation,
            records: inventory.records,
        })
    }

    fn publish(
        &mut self,
        generation: Generation,
        deletes: &[Key],
        puts: &[Record],
    ) -> Result<(), PublishError> {
        let Some(connection) = &mut self.connection else {
            return Err(PublishError::Lost("there is no connection".into()));
        };
        match connection.publish(generation, deletes, puts) {
            Ok(()) => Ok(()),
            Err(client::PublishError::Lost(lost)) => {
                // Hung up, so that a dataplane that wakes again admits the next connection.
                self.connection = None;
                Err(PublishError::Lost(lost.to_string()))
            }
            Err(refused) => Err(PublishError::Refused(refused.to_string())),
        }
    }

    fn is_alive(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::is_alive)
    }
}
