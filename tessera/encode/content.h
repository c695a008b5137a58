#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "tessera/model/model.h"

namespace tessera {

/// True for the encoders of raw content: "tfidf" and "exec:COMMAND".
bool is_content_encoder(const std::string& encoder);

/// Makes a modality of a dataset folder from the texts of its items.tsv, or, with exec, from the
/// files of its media.tsv, and puts it there: {"folder", "features": entries by modality}. What was
/// made from the same content by the same encoder before is not made again. Settings: modality,
/// text (columns), width and so on. Rows are stored as `dtype`, float16 or float32.
Json encode_content(const std::filesystem::path& folder, const std::string& encoder,
                    const Settings& settings, torch::ScalarType dtype, const Log& log,
                    const std::function<bool()>& stop_requested);

}  // namespace tessera
