#pragma once

#include <string>

#include "tessera/eval/protocol.h"

namespace tessera {

/// What becomes of a user's history in the ranking of test: "none", the items stay candidates;
/// "mask"; or "mask (train only)". Empty for a name that is no protocol's.
std::string seen_words(const Protocol& protocol);
std::string seen_words(const std::string& protocol);

/// How every result names its protocol: with seen_words() where the name itself does not say it
/// ("recbole-seq, seen none"; "seq-mask"). A name that is no protocol's stays as it is.
std::string protocol_words(const std::string& protocol);

/// Exit 2 for a protocol whose numbers stand in no table (ratio20); `verb` is who was asked.
void refuse_in_tables(const Protocol& protocol, const std::string& verb);

}  // namespace tessera
