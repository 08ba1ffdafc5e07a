"""An HTTP server around a ranker: several dialects of `/rerank`, batching across requests, limits, health, metrics.

`blockrank.serve.app.create_app` makes the application, `blockrank.serve.server.run` serves it; both need the extra
`serve`. How a call is read and answered needs nothing beyond the core.
"""
