//! How a stream ended: normal business, or something to warn about.

use outrigger_xds::grpc::GrpcError;
use tonic::{Code, Status};

/// Class of an end of stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndClass {
    /// End of stream with OK.
    Graceful,
    /// What restarts and timeouts look like; metric type `cancelled`.
    Expected,
    /// Everything else; metric type `error`.
    Unexpected,
}

/// Texts of UNAVAILABLE that are expected.
const EXPECTED_TEXTS: [&str; 3] = [
    "client disconnected",
    "error reading from server: EOF",
    "transport is closing",
];

/// Class of a failed stream.
pub(super) fn classify(error: &GrpcError) -> EndClass {
    if error.is_connection_closed() || error.h2_reason() == Some(h2_no_error()) {
        return EndClass::Expected;
    }
    classify_status(&error.status())
}

fn classify_status(status: &Status) -> EndClass {
    match status.code() {
        Code::Ok => EndClass::Graceful,
        Code::Cancelled | Code::DeadlineExceeded => EndClass::Expected,
        Code::Unavailable
            if EXPECTED_TEXTS
                .iter()
                .any(|text| status.message().contains(text)) =>
        {
            EndClass::Expected
        }
        _ => EndClass::Unexpected,
    }
}

const fn h2_no_error() -> outrigger_xds::grpc::H2Reason {
    outrigger_xds::grpc::H2Reason::NO_ERROR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_code_and_text() {
        for (status, class) in [
            (Status::ok(""), EndClass::Graceful),
            (Status::cancelled("x"), EndClass::Expected),
            (Status::deadline_exceeded("x"), EndClass::Expected),
            (
                Status::unavailable("error reading from server: EOF"),
                EndClass::Expected,
            ),
            (
                Status::unavailable("transport is closing"),
                EndClass::Expected,
            ),
            (
                Status::unavailable("client disconnected"),
                EndClass::Expected,
            ),
            (
                Status::unavailable("connection refused"),
                EndClass::Unexpected,
            ),
            (Status::unauthenticated("no token"), EndClass::Unexpected),
        ] {
            assert_eq!(classify_status(&status), class, "{status:?}");
        }
    }
}
