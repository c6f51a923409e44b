// The engine of an instruction set, with all that it stands on. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/exp.h"
#include "cpu/gemm.h"
#include "cpu/pool.h"
#include "cpu/pool_weights.h"
#include "cpu/rows.h"
#include "cpu/vector_engine.h"
#if defined(JAIR_TILES)
#include "cpu/tiles.h"
#if defined(JAIR_AMX)
#include "cpu/amx_tiles.h"
#else
#include "cpu/vector_tiles.h"
#endif
#include "cpu/tile_rows.h"
#include "cpu/tile_engine.h"
#endif

namespace jair {
namespace JAIR_ISA {

#if defined(JAIR_TILES)
template <typename T>
using Engine = TileEngine;
#else
template <typename T>
using Engine = VectorEngine<T>;
#endif

}  // namespace JAIR_ISA
}  // namespace jair
