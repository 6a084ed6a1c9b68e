//! kube-proxy itself beside Portolan: the same objects from the same API server, the same packets, in the same run.
//!
//! * [`Contender`] is a program to start: Portolan, or kube-proxy of some release with some `minSyncPeriod`.
//! * [`Stage`] is the cluster around it: a node, an API server on it, and every endpoint there is, on real links.
//! * [`measure`] takes one contender through all that is compared, and returns its [`Figures`].
//! * [`Worst`] is a Service that costs a node much, to be put beside the others.
//! * [`table`] prints the figures of all.
//!
//! Whether something is in force is asked of the network: a connection goes through, or goes to the new endpoint.
//! Nothing is read from a program's own words. The API server is the lab's and speaks JSON to all of them, where
//! kube-proxy would speak protobuf with a real one; what that costs it is in its first start.

mod contender;
mod run;
mod stage;
pub mod table;
mod usage;
mod worst;

pub use contender::Contender;
pub use run::{Figures, Plan, measure};
pub use stage::Stage;
pub use usage::Usage;
pub use worst::Worst;
