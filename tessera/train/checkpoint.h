#pragma once

#include <filesystem>

#include "tessera/model/state.h"

namespace tessera {

/// A checkpoint folder: weights.safetensors, optimizer.safetensors (where there is anything in it)
/// and state.json, written beside its place and exchanged. `also` may add files to it.
void write_checkpoint(const std::filesystem::path& folder, const State::Saved& saved,
                      const std::function<void(const std::filesystem::path&)>& also = {});
/// Exit 3 for a folder that is missing, truncated or whose hashes differ.
State::Saved read_checkpoint(const std::filesystem::path& folder);

}  // namespace tessera
