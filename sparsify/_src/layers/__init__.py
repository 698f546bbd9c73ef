"""The sparse layers, and what belongs to them: values, topology, state dicts, copies."""
