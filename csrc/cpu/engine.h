// The engine of an instruction set, with all that it stands on. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/gemm.h"
#include "cpu/pool.h"
#include "cpu/vector_engine.h"
#if defined(JAIR_AMX)
#include "cpu/amx.h"
#include "cpu/amx_rows.h"
#include "cpu/amx_engine.h"
#endif

namespace jair {
namespace JAIR_ISA {

#if defined(JAIR_AMX)
template <typename T>
using Engine = AmxEngine;
#else
template <typename T>
using Engine = VectorEngine<T>;
#endif

}  // namespace JAIR_ISA
}  // namespace jair
