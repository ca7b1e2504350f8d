use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::process::Command;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};

use crate::case::{Setup, Values, bits, forward, layer, layer_gradients, tensor, training};

/// Set in the child processes of [`results_do_not_depend_on_the_number_of_threads`].
const CHILD: &str = "SWITCHYARD_TEST_PRINTS_DIGEST";

/// Hash of every bit of one forward and backward pass.
fn digest() -> u64 {
    let mut setup = Setup::small(512, 4, 2);
    // About 256 rows per expert: 256 x 160 x 200 is above where a matrix product is split among
    // threads.
    (setup.d_model, setup.d_expert, setup.d_shared_expert) = (160, 200, Some(96));
    let inputs = Values::random(&setup, 10);
    let layer = layer(&setup, &inputs, DType::F32);
    let x_td = tensor(&inputs.x_td, [512, 160], DType::F32).require_grad();
    let output = forward(&layer, x_td.clone(), training());
    let loss = (output.hidden_td.clone() * tensor(&inputs.c_td, [512, 160], DType::F32)).sum();
    let gradients = layer_gradients(&x_td, &layer, &loss.backward());
    let mut hasher = DefaultHasher::new();
    bits(&output.hidden_td).hash(&mut hasher);
    gradients.map(|gradient| bits(&gradient)).hash(&mut hasher);
    hasher.finish()
}

/// One process per run: the thread pool is made once in a process.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    if env::var_os(CHILD).is_some() {
        writeln!(std::io::stdout(), "\ndigest {:016x}", digest()).unwrap();
        return;
    }
    let digest_with_threads = |threads: &str| {
        let name = "repeatability::results_do_not_depend_on_the_number_of_threads";
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .envs([(CHILD, "1"), ("RAYON_NUM_THREADS", threads)])
            .output()
            .unwrap();
        let stdout = String::from_utf8(child.stdout).unwrap();
        let digest = stdout.lines().find_map(|line| line.strip_prefix("digest "));
        digest.unwrap_or_else(|| panic!("no digest in {stdout:?}")).to_string()
    };
    let one = digest_with_threads("1");
    assert_eq!(one, digest_with_threads("2"), "1 and 2 threads differ");
    assert_eq!(one, digest_with_threads("2"), "two runs differ");
}

/// Collects the dotted path of every parameter.
#[derive(Default)]
struct Paths {
    current: Vec<String>,
    all: Vec<String>,
}

impl ModuleVisitor for Paths {
    fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
        self.all.push(self.current.join("."));
    }

    fn enter_module(&mut self, name: &str, _: &str) {
        self.current.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.current.pop();
    }
}

#[test]
fn checkpoint_paths_stay_as_they_are() {
    let setup = Setup { d_shared_expert: Some(2), ..Setup::small(1, 2, 1) };
    let mut paths = Paths::default();
    layer(&setup, &Values::random(&setup, 11), DType::F32).visit(&mut paths);
    assert_eq!(
        paths.all,
        [
            "router.weight_de",
            "experts.w_gate_edf",
            "experts.w_up_edf",
            "experts.w_down_efd",
            "shared_expert.w_gate_df",
            "shared_expert.w_up_df",
            "shared_expert.w_down_fd",
        ]
    );
}
