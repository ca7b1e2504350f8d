//! One process alone.

use crate::CommError;
use crate::transport::{Call, Incoming, Outgoing, Transport, end_process};

#[derive(Debug)]
pub(crate) struct Single;

impl Transport for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(
        &self,
        sends: &[Outgoing<'_>],
        receives: Vec<Incoming<'_>>,
        call: Call,
    ) -> Result<(), CommError> {
        assert!(
            sends.is_empty() && receives.is_empty(),
            "`{}` has messages, but there is nobody else",
            call.collective
        );
        Ok(())
    }

    fn end_job(&self) -> ! {
        end_process()
    }
}
