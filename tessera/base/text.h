#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// The parts of `text` between separators, empty ones too: one more than there are separators.
std::vector<std::string> split_cells(std::string_view text, char separator);

/// The same without the empty ones: a list that somebody typed.
std::vector<std::string> split_list(std::string_view text, char separator = ',');

/// Without blanks, tabs and line ends at either end.
std::string trimmed(std::string_view text);

/// ASCII letters in lower case.
std::string lower(std::string_view text);

/// Fit for one cell of a tab-separated file: tabs, line ends and zero bytes become blanks.
std::string tsv_cell(std::string_view text);

}  // namespace tessera
