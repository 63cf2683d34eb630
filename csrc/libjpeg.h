#pragma once

// The one place that includes libjpeg: jpeglib.h uses FILE without including its header, so that the order matters.
// clang-format off
#include <cstddef>
#include <cstdio>
#include <jpeglib.h>
#include <jerror.h>
// clang-format on

#ifndef LIBJPEG_TURBO_VERSION
#error "afd-serve needs the headers of libjpeg-turbo: other libraries of this interface make other pixels"
#endif
