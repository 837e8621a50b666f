//! A collector that takes spans by OTLP over gRPC and writes each as a line of JSON.

use anyhow::Result;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value as Attribute},
    trace::v1::Span,
};
use serde_json::{Map, Value, json};
use tonic::{Request, Response, Status};

use super::web;

/// The usual port of OTLP over gRPC.
pub const PORT: u16 = 4317;

struct Writes;

#[tonic::async_trait]
impl TraceService for Writes {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of in request.into_inner().resource_spans {
            let resource = of.resource.map_or_else(Vec::new, |r| r.attributes);
            let resource = attributes(&resource);
            let spans = of.scope_spans.iter().flat_map(|scope| &scope.spans);
            spans.for_each(|span| println!("{}", line(span, &resource)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn line(span: &Span, resource: &Map<String, Value>) -> Value {
    json!({
        "span": hex(&span.span_id),
        "trace": hex(&span.trace_id),
        "parent": hex(&span.parent_span_id),
        "name": span.name,
        "attributes": attributes(&span.attributes),
        "resource": resource,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn attributes(all: &[KeyValue]) -> Map<String, Value> {
    let shown = all.iter().map(|kv| {
        let value = match kv.value.as_ref().and_then(|v| v.value.as_ref()) {
            Some(Attribute::StringValue(text)) => json!(text),
            Some(Attribute::IntValue(number)) => json!(number),
            other => json!(format!("{other:?}")),
        };
        (kv.key.clone(), value)
    });
    shown.collect()
}

/// Serves until SIGTERM.
pub async fn collector(port: u16) -> Result<()> {
    let listener = web::listen(port)?;
    println!("listening on port {port}");
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Writes))
        .serve_with_incoming_shutdown(
            tokio_stream::wrappers::TcpListenerStream::new(listener),
            async move {
                stop.recv().await;
            },
        )
        .await?;
    Ok(())
}
