"""The custom resource definitions, made from the configuration models: structural, described, bounded."""
