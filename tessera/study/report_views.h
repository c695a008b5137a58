#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tessera/base/json.h"

namespace tessera {

// Parts of a report page that are made of numbers other files hold; the forms are those of
// report_data(). All of these take whatever is there and leave out what is not.

/// {kind, title}; {title, note, blocks: []}; [a, b].
Json block(const std::string& kind, const std::string& title);
Json section(const std::string& title, const std::string& note = "");
Json pair_of(const Json& a, const Json& b);

/// Adds a row [name, value] for each number or text in `value`, nested names joined by dots.
void flatten(const Json& value, const std::string& name, Json& rows);

/// The quality of item features, from quality_report(): areas, scores over the null,
/// scores by number of users, rounds; rewritten items with their neighbours; the worst that are
/// left.
Json quality_sections(const Json& report);

/// The two panels of modality forgetting (kdsr section 7), from the lines of metrics.jsonl of named
/// runs; the curves of all runs but the first are dashed. Empty where no run recorded any.
Json forgetting_sections(const std::vector<std::pair<std::string, std::vector<Json>>>& runs);

/// Of a study's table.tsv as a block: what a reader looks for first, as blocks. A table of the
/// means by row, and mean and spread over seeds as intervals.
Json summary_blocks(const Json& table);

}  // namespace tessera
