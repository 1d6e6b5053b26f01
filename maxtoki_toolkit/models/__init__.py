"""Everything that knows tokens and tensors, and nothing of AnnData."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["build_model"],
        "export_clock": ["export_clock"],
        "classifier": ["CellClassifier"],
        "extend": ["extend_model"],
        "feature_edits": ["edited_features"],
        "load": ["load_model", "save_model"],
        "megatron": ["from_megatron", "to_megatron"],
        "model": ["MaxTokiModel"],
        "response": ["ResponseModel", "load_response", "save_response"],
        "save_for_hub": ["save_for_hub"],
        "sae": ["SparseAutoencoder", "save_sae"],
        "time_head": ["TimeHead"],
        "vocabulary": ["Vocabulary"],
    },
)
