#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tessera/model/model.h"

namespace tessera {

/// Rows of one modality on their way into a dataset folder.
struct NewFeature {
  std::string modality;
  torch::Tensor rows;  ///< float32 [n, width]
  Vocabulary ids;      ///< row r is of item ids[r]
  Json encoder;        ///< how they were made; "made_by" lets a later call replace them
  Json source;         ///< what they were made from
  Json valid_for;      ///< train_sha256 of the only split they are good for, or null
  std::vector<std::string> content_sha256 = {};  ///< of what each row was made from, or empty
};

/// Puts features into a dataset folder, all of them or none: the folder is built again beside its
/// place, what stays is linked, and the two are exchanged. Features of that name are replaced where
/// this program made them; exit 2 for others. Rows are stored as `dtype`, float16 or float32; exit
/// 3 for numbers that float16 cannot hold. Returns the entries of features.json by modality.
Json put_features(const std::filesystem::path& folder, const std::vector<NewFeature>& features,
                  torch::ScalarType dtype);

/// "float16" or "float32"; exit 2 for anything else.
torch::ScalarType feature_dtype(const std::string& name);

/// Exit 2 where `modality` of the folder was not made by this program.
void refuse_foreign_feature(const std::filesystem::path& folder, const std::string& modality);

}  // namespace tessera
