"""GeoLLaVA-8K in vLLM: questions to 8K scenes over an OpenAI-compatible server."""
