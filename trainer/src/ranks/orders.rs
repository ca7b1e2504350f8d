//! What the first rank has the others do: it runs the run, and they follow.

use std::path::PathBuf;
use std::time::Duration;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use switchyard_comm::link::{self, Measured};
use switchyard_ground::key_error::KeyError;
use switchyard_kernels::{Compute, Products};
use switchyard_model::{Transformer, parameter_tensors};

use super::{Ranks, from_bytes, to_bytes};
use crate::TrainError;
use crate::checkpoint::TrainingState;
use crate::config::RunConfig;
use crate::evaluate::EvaluationSettings;
use crate::optimizer::Optimizer;
use crate::plan::RunPlan;
use crate::products::bits_differ;
use crate::throughput::measure_matmul_peak_flops;

/// No timeout, and no overflow when it is added to a time.
const AS_LONG_AS_IT_LIVES: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Something that all ranks do together.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// A run.
    Begin(Box<Begin>),
    /// The run's next step.
    Step,
    /// An evaluation of the model.
    Evaluate {
        /// On what.
        split: EvaluatedSplit,
        /// How.
        settings: EvaluationSettings,
    },
    /// Bring together what the optimizers remember.
    GatherMoments,
    /// Bring together the experts of all ranks.
    GatherModel,
    /// Measure how long messages take; outside of a run.
    MeasureLinks,
    /// The run is over.
    End,
    /// There will be no other run.
    Quit,
}

/// A run that begins or goes on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Begin {
    /// Hash of the code that trains.
    pub(crate) training_code: String,
    pub(crate) config: RunConfig,
    pub(crate) plan: RunPlan,
    /// The checkpoint that it goes on from.
    pub(crate) checkpoint: Option<PathBuf>,
}

/// Text of a run's data.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum EvaluatedSplit {
    /// The validation split.
    Validation,
    /// That of one source, by its index.
    ValidationOf(usize),
    /// The test split.
    Test,
}

/// What a rank tells before the first step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Readiness {
    /// What it begins with.
    pub(crate) beginning: Beginning,
    /// What multiplies its matrices.
    pub(crate) products: Products,
    /// How fast, in FLOP/s.
    pub(crate) matmul_peak_flops: f64,
}

/// What a rank begins with: on all the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Beginning {
    /// Key of the data's content.
    data_key: String,
    /// Steps done, and a checksum of every parameter and moment.
    step: u64,
    checksum: u32,
}

impl Beginning {
    /// That of a run's parts, with this data.
    pub(crate) fn of(
        data_key: &str,
        (model, optimizer): (&Transformer, &Optimizer),
        state: &TrainingState,
    ) -> Self {
        let parameters = parameter_tensors(model).into_iter().map(|named| named.value);
        let moments = optimizer.moments().into_iter().map(|(_, moment)| moment);
        let checksum = parameters.chain(moments).fold(0, |checksum, tensor| {
            crc32c::crc32c_append(checksum, tensor.values_n.into_data().as_bytes())
        });
        Self { data_key: data_key.to_owned(), step: state.step, checksum }
    }

    /// How another differs, and what it comes from; `None` if it does not.
    fn differs_by(&self, other: &Self) -> Option<&'static str> {
        if self.data_key != other.data_key {
            return Some("reads other data than rank 0: what `data` names");
        }
        let parameters =
            "begins with other parameters than rank 0: the run folder, and what `start.from` names,";
        (self != other).then_some(parameters)
    }
}

impl Ranks {
    /// `own`, with what multiplies and how fast all ranks together are, once all are ready.
    ///
    /// # Errors
    /// This rank's own error, or that of another; [`TrainError::Distributed`] if their numbers would
    /// have other bits.
    pub(crate) fn ready<T>(
        &self,
        own: Result<(T, Beginning), TrainError>,
        device: &Device,
        compute: Compute,
    ) -> Result<(T, Readiness), TrainError> {
        let measured = |beginning| -> Result<Readiness, TrainError> {
            let matmul_peak_flops = measure_matmul_peak_flops(device, compute)?;
            Ok(Readiness { beginning, products: Products::of(compute), matmul_peak_flops })
        };
        let (own, readiness) = match own.and_then(|(own, beginning)| Ok((own, measured(beginning)?))) {
            Ok((own, readiness)) => (Some(own), Ok(readiness)),
            Err(error) => (None, Err(error)),
        };
        let all = self.agree(readiness)?;
        let (beginning, products) = (all[0].beginning.clone(), all[0].products);
        let differs =
            |(rank, other): (usize, &Readiness)| Some((rank, beginning.differs_by(&other.beginning)?));
        if let Some((rank, how)) = all.iter().enumerate().find_map(differs) {
            return Err(TrainError::OtherBeginning { rank, how });
        }
        if let Some((rank, other)) = all.iter().enumerate().find(|(_, other)| other.products != products)
            && let Some([first, other]) = bits_differ(products, other.products)
        {
            let problem = format!(
                "lets rank 0 compute products by {first} and rank {rank} by {other}, which has other bits"
            );
            let remedy = "set it to false, which has the same bits everywhere";
            return Err(TrainError::Distributed(KeyError::new(
                "train.precision.matrix_units",
                problem,
                remedy,
            )));
        }
        let matmul_peak_flops = all.iter().map(|readiness| readiness.matmul_peak_flops).sum();
        let own = own.unwrap_or_else(|| unreachable!("all ranks are ready"));
        Ok((own, Readiness { beginning, products, matmul_peak_flops }))
    }

    /// Has the other ranks do something, of which this one, the first, then does its part.
    ///
    /// # Errors
    /// [`TrainError::Comm`].
    pub(crate) fn order(&self, order: &Order) -> Result<(), TrainError> {
        if !self.is_alone() {
            self.comm.broadcast(&mut to_bytes(order), 0)?;
        }
        Ok(())
    }

    /// How long messages between all ranks take, which follow this one, the first.
    ///
    /// # Errors
    /// [`TrainError::Comm`].
    pub(crate) fn measure_links(&self) -> Result<Vec<Measured>, TrainError> {
        self.order(&Order::MeasureLinks)?;
        Ok(link::measure(&self.comm)?)
    }

    /// What the first rank has the others do next. It may have long work of its own before: as long
    /// as it lives, this waits.
    ///
    /// # Errors
    /// [`TrainError::Comm`].
    pub(crate) fn next_order(&self) -> Result<Order, TrainError> {
        let mut bytes = Vec::new();
        self.comm.clone().with_timeout(AS_LONG_AS_IT_LIVES).broadcast(&mut bytes, 0)?;
        Ok(from_bytes(&bytes))
    }
}

/// Has the other ranks end their part of a run when it goes, however this one's ends.
#[derive(Debug)]
pub(crate) struct Leader<'a>(&'a Ranks);

impl<'a> Leader<'a> {
    /// Has the other ranks begin their part of a run.
    ///
    /// # Errors
    /// [`TrainError::Comm`].
    pub(crate) fn begin(ranks: &'a Ranks, begin: Begin) -> Result<Self, TrainError> {
        ranks.order(&Order::Begin(Box::new(begin)))?;
        Ok(Self(ranks))
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        // Ranks that cannot be told have ended.
        drop(self.0.order(&Order::End));
    }
}
