import { DataTypes, type Model, type ModelAttributeColumnOptions, Op, Sequelize } from 'sequelize'
import type { OpenContender } from '../contender.ts'
import { type Comment, exportSize, type NewComment, pageSize, type Payment, type User } from '../data-set.ts'

interface UserModel extends Model, User {}

interface PostModel extends Model {
  readonly id: number
  readonly title: string
  readonly created_at: Date
  readonly updated_at: Date
  readonly author: User
}

interface PaymentModel extends Model, Payment {}

interface CommentModel extends Model<Comment, NewComment>, Comment {}

// Sequelize writes into the objects it is given, so each column needs one of its own.
const key = (): ModelAttributeColumnOptions => ({ type: DataTypes.INTEGER, primaryKey: true, autoIncrement: true })
const number = (): ModelAttributeColumnOptions => ({ type: DataTypes.INTEGER })
const text = (): ModelAttributeColumnOptions => ({ type: DataTypes.TEXT })
const moment = (): ModelAttributeColumnOptions => ({ type: DataTypes.DATE(3) })

/** Sequelize's models, with model instances as results. */
export const openSequelize: OpenContender = async (settings) => {
  const sequelize = new Sequelize(settings.url, {
    dialectOptions: { application_name: settings.applicationName },
    pool: { min: settings.connections, max: settings.connections },
    define: { timestamps: false },
    logging: false,
  })
  const users = sequelize.define<UserModel>('users', {
    id: key(),
    email: text(),
    name: text(),
    is_active: { type: DataTypes.BOOLEAN },
    order_count: number(),
    created_at: moment(),
  })
  const posts = sequelize.define<PostModel>('posts', {
    id: key(),
    author_id: number(),
    title: text(),
    created_at: moment(),
    updated_at: moment(),
  })
  posts.belongsTo(users, { as: 'author', foreignKey: 'author_id' })
  const orders = sequelize.define('orders', { id: key(), status: text(), updated_at: moment() })
  const payments = sequelize.define<PaymentModel>('payments', {
    id: { type: DataTypes.INTEGER, primaryKey: true },
    account_id: { type: DataTypes.BIGINT },
    reference: text(),
    purpose: text(),
    paid_at: moment(),
    is_settled: { type: DataTypes.BOOLEAN },
    amount: { type: DataTypes.DECIMAL(12, 2) },
    details: { type: DataTypes.JSONB },
  })
  const comments = sequelize.define<CommentModel>('comments', {
    id: key(),
    post_id: number(),
    author_id: number(),
    body: text(),
    created_at: { ...moment(), defaultValue: Sequelize.literal('now()') },
  })
  await sequelize.authenticate()
  return {
    readUser: (id) => users.findByPk(id),
    async readPage(before) {
      const found = await posts.findAll({
        attributes: ['id', 'title', 'created_at', 'updated_at'],
        include: { model: users, as: 'author', attributes: ['id', 'name'], required: true },
        where: { id: { [Op.lt]: before } },
        order: [['id', 'DESC']],
        limit: pageSize,
      })
      return found.map(({ id, title, created_at, updated_at, author }) => ({
        id,
        title,
        created_at,
        updated_at,
        author_id: author.id,
        author_name: author.name,
      }))
    },
    readExport: (after) =>
      payments.findAll({ where: { id: { [Op.gt]: after } }, order: [['id', 'ASC']], limit: exportSize }),
    addComment: (comment) => comments.create(comment),
    async payOrder(orderId, userId) {
      await sequelize.transaction(async (transaction) => {
        const paid = { status: 'paid', updated_at: Sequelize.fn('now') }
        await orders.update(paid, { where: { id: orderId }, transaction })
        await users.increment('order_count', { by: 1, where: { id: userId }, transaction })
      })
    },
    close: () => sequelize.close(),
  }
}
