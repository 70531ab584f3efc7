// The Python side of gristmill::text.
#pragma once

#include <nanobind/nanobind.h>

namespace gristmill::text {

void bind_text(nanobind::module_& m);

}  // namespace gristmill::text
