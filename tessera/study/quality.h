#pragma once

#include <map>
#include <string>

#include "tessera/base/json.h"
#include "tessera/data/dataset.h"
#include "tessera/model/model.h"
#include "tessera/nn/quality.h"

namespace tessera {

/// Columns item, modality, present, score, null_score, area, status (original, rewritten, missing),
/// round, source, score_before; a row for each item and modality, a field empty where there is
/// nothing to say.
std::string quality_tsv(const Quality& quality, const TrainView& data);

/// Model, dataset, seed; areas, counts and shares; by modality the same, a histogram over that of
/// the null (the mean of its draws), deciles and scores against the number of users; rewritten rows
/// with their neighbours before and after; the 100 lowest unrepaired items of each modality that
/// carries a consensus; the rounds.
Json quality_report(const std::string& model, const Quality& quality, const TrainView& data);

/// quality.tsv and quality.json by name, of a model that reviews features; of another nothing.
std::map<std::string, std::string> quality_files(const std::string& name, Model& model);

}  // namespace tessera
